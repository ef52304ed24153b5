"""A login that shares what upstream says of it with other mirrors."""

from dataclasses import dataclass, field, replace

import pytest

from mirror.errors import CredentialsRefused
from mirror.upstream.login import FIRST_PAUSE_S, Account, Credentials, Login, LoginRefusals, LoginSharing


@dataclass
class Others:
    """Other mirrors: `known` is what they answer, the rest is what they have been asked and told."""

    known: LoginRefusals = field(default_factory=LoginRefusals)
    is_news: bool = False
    turns: list = field(default_factory=list)
    told: list = field(default_factory=list)

    async def ask(self, credentials, *, takes_turn):
        self.turns.append(takes_turn)
        return self.known

    def sharing(self):
        return LoginSharing(
            has_news=lambda: self.is_news,
            ask=self.ask,
            refused=lambda _, refusals: self.told.append(refusals),
            accepted=lambda _: self.told.append("accepted"),
            undecided=lambda _: self.told.append("undecided"),
        )


@pytest.fixture
def password(tmp_path):
    path = tmp_path / "password"
    path.write_text("secret")
    return path


@pytest.fixture
def now():
    return [1000.0]


@pytest.fixture
def others():
    return Others()


@pytest.fixture
def login(password, now, others):
    made = Login(Account("robot", password), clock=lambda: now[0])
    made.sharing = others.sharing()
    return made


async def test_known_refusal_is_not_repeated(login, now, others):
    """Until its pause has ended; then the next pause goes on from theirs."""
    others.known = LoginRefusals(3, 200.0)
    for _ in range(2):
        with pytest.raises(CredentialsRefused) as refused:
            await login.credentials()
        assert refused.value.retry_after == 200.0
    assert others.turns == [True]
    assert login.problem == "refused (another node tried): check username and password_file"
    now[0] += 200
    others.known = LoginRefusals(3)
    login.refused(await login.credentials())
    assert others.told == [LoginRefusals(4, 8 * FIRST_PAUSE_S)]
    assert login.problem == "refused: check username and password_file"


async def test_settled_login_asks_only_after_news(login, others):
    login.accepted(await login.credentials())
    login.accepted(await login.credentials())
    assert (others.turns, others.told) == ([True], ["accepted"])
    others.is_news = True
    await login.credentials()
    assert (others.turns, login.is_settled) == ([True, False], True)
    others.known = LoginRefusals(1, 60.0)
    with pytest.raises(CredentialsRefused):
        await login.credentials()
    assert not login.is_settled


async def test_outcome_of_what_was_shown(login, others):
    """Others are told once that there is none."""
    for note in (lambda _: None, login.refused, login.accepted):
        others.told.clear()
        credentials = await login.credentials() if login.wait == 0 else Credentials("robot", "secret")
        with login.shown(credentials):
            note(credentials)
        assert len(others.told) == 1
    with pytest.raises(TimeoutError), login.shown(None):
        raise TimeoutError
    assert others.told == ["accepted"]


async def test_new_password_is_not_refused(login, others, password):
    others.known = LoginRefusals(1, 60.0)
    with pytest.raises(CredentialsRefused):
        await login.credentials()
    password.write_text("another")
    others.known = LoginRefusals()
    assert await login.credentials() == Credentials("robot", "another")
    assert login.problem is None


async def test_answer_about_an_older_password(login, others, password):
    """It says nothing of the one that another request has read meanwhile."""

    async def late(credentials, *, takes_turn):
        password.write_text("another")
        await login.refresh()
        return LoginRefusals(1, 60.0)

    login.sharing = replace(others.sharing(), ask=late)
    assert (await login.credentials()).password == "secret"
    assert (login.wait, login.problem) == (0.0, None)


async def test_fallback_without_the_account(login, others):
    login.anonymous_fallback = True
    others.known = LoginRefusals(1, 60.0)
    assert await login.credentials() is None
