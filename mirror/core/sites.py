"""Which hosts belong to the same owner, as far as that can be told without the public suffix list."""

from typing import Final

# Second levels under which countries register names: example.co.uk, example.com.cn.
_COUNTRY_SECOND_LEVELS: Final = frozenset({"ac", "co", "com", "edu", "gob", "gov", "go", "mil", "ne", "net", "nom", "or", "org"})

# Domains under which strangers get names of their own from a provider.
_SHARED: Final = frozenset(
    {
        "amazonaws.com",
        "appspot.com",
        "azurecontainerapps.io",
        "azurecr.cn",
        "azurecr.io",
        "azurecr.us",
        "azurewebsites.net",
        "backblazeb2.com",
        "cloudapp.net",
        "cloudflarestorage.com",
        "cloudfront.net",
        "digitaloceanspaces.com",
        "duckdns.org",
        "dyndns.org",
        "fly.dev",
        "github.io",
        "gitlab.io",
        "googleapis.com",
        "herokuapp.com",
        "jfrog.io",
        "netlify.app",
        "ngrok-free.app",
        "ngrok.app",
        "ngrok.io",
        "nip.io",
        "no-ip.org",
        "ondigitalocean.app",
        "onrender.com",
        "pages.dev",
        "r2.dev",
        "run.app",
        "sslip.io",
        "trycloudflare.com",
        "vercel.app",
        "web.app",
        "windows.net",
        "workers.dev",
    }
)


def same_site(one: str, other: str) -> bool:
    """Whether two host names, lower case and without port, are equal or under one registered domain.

    The registered domain is taken to be the last two labels. Addresses, single labels, and names under a
    suffix shared by strangers belong together only if they are equal.
    """
    if one == other:
        return True
    domain = _registered_domain(one)
    return domain is not None and domain == _registered_domain(other)


def _registered_domain(host: str) -> str | None:
    labels = host.split(".")
    if len(labels) < 2 or not all(labels):
        return None
    second, top = labels[-2:]
    # A last label that begins with a digit makes it an IPv4 address in one of its notations.
    if top[0].isdigit():
        return None
    domain = f"{second}.{top}"
    shared = domain in _SHARED or (len(top) == 2 and second in _COUNTRY_SECOND_LEVELS)
    return None if shared else domain
