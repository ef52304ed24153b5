"""The scripts of leases, which Redis runs as one step each.

A lease is a value STATE|TOKEN|NODE|REST: `own` while the node fetches the blob, `held` once it has it, `failed` with what
upstream has answered. The nodes that ask for a blob form a tree: number n in the list of askers streams from number
(n - 1) / fan-out. A node with a zone has a number in the list of its zone; only the first of a zone has one in the list of the
cluster as well, so that the bytes come into a zone once. A node that has not beaten lately is no parent, and sends no part of a
blob to a new owner. The owner is named all the same, marked by `!`: it may have lost Redis only.
"""

from __future__ import annotations

from typing import Final

from mirror.cluster.link import Script

# KEYS: lease, askers, askers of the zone, nodes. ARGV: this node, the value to replace, a token, whether it may own, fan-out,
# scope, TTLs of a lease that is owned and of the lists, zone, seconds for which a beat counts.
ASK: Final = Script("""
local value = redis.call('GET', KEYS[1])
local me, suspect, may_own, has_zone = ARGV[1], ARGV[2], ARGV[4] == '1', ARGV[9] ~= ''
local state, node, rest, others = '', '', '', {}
if value then state, node, rest = string.match(value, '^(%a+)|[^|]*|([^|]*)|(.*)$') end
local mine = node == me
local function place(list)
  local number = redis.call('LPOS', list, me)
  if number then return number end
  number = redis.call('LLEN', list)
  if may_own and number < 1024 then
    redis.call('RPUSH', list, me)
    redis.call('PEXPIRE', list, ARGV[8])
  end
  return number
end
-- After a loss of data nobody has beaten yet.
local oldest = redis.call('ZSCORE', KEYS[4], me) and redis.call('TIME')[1] - ARGV[10]
local function lives(other)
  return not oldest or tonumber(redis.call('ZSCORE', KEYS[4], other) or 0) >= oldest
end
local function add(nodes, list, first, last, but)
  for _, other in ipairs(redis.call('LRANGE', list, first, last)) do
    if other ~= me and other ~= but and lives(other) then nodes[#nodes + 1] = other end
  end
end
local function add_parents(nodes, list, number)
  while number > 0 do
    number = math.floor((number - 1) / tonumber(ARGV[5]))
    add(nodes, list, number, number)
  end
end
if not may_own then
  -- It has found out that it cannot store the blob: nobody is sent to it any more.
  redis.call('LREM', KEYS[2], 0, me)
  redis.call('LREM', KEYS[3], 0, me)
  if state == 'own' and mine then
    redis.call('DEL', KEYS[1])
    return {'alone'}
  end
end
if value and value ~= suspect then
  if state == 'own' and mine then return {'owned', value} end
  if state == 'failed' and not mine and string.match(rest, '^([^|]*)') == ARGV[6] then return {'failed', rest} end
  if state == 'held' then
    if has_zone then add(others, KEYS[3], -4, -1) end
    add(others, KEYS[2], -4, -1)
  end
  if (state == 'own' or state == 'held') and not (mine and #others == 0) then
    local found, number = {'follow', value}, 0
    if has_zone then
      number = place(KEYS[3])
      add_parents(found, KEYS[3], number)
    end
    if number == 0 then add_parents(found, KEYS[2], place(KEYS[2])) end
    for _, other in ipairs(others) do found[#found + 1] = other end
    if not mine then found[#found + 1] = (lives(node) and '' or '!') .. node end
    return found
  end
end
if not may_own then return {'alone'} end
local answer = {'own', 'own|' .. ARGV[3] .. '|' .. me .. '|'}
if value then
  if has_zone then add(answer, KEYS[3], 0, 7, node) end
  add(answer, KEYS[2], 0, 7, node)
end
redis.call('SET', KEYS[1], answer[2], 'PX', ARGV[7])
redis.call('DEL', KEYS[2], KEYS[3])
place(KEYS[2])
if has_zone then place(KEYS[3]) end
return answer
""")

# KEYS: as above. ARGV: own value, TTL, this node, TTL of the lists, zone. Redis may have lost it: then it is written again.
RENEW: Final = Script("""
local value = redis.call('GET', KEYS[1])
if value and value ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if not value then
  redis.call('DEL', KEYS[2], KEYS[3])
  for number = 2, ARGV[5] == '' and 2 or 3 do
    redis.call('RPUSH', KEYS[number], ARGV[3])
    redis.call('PEXPIRE', KEYS[number], ARGV[4])
  end
end
return 1
""")

# KEYS: as above. ARGV: own value, the value that replaces it (nothing: delete it), TTL.
END: Final = Script("""
local value = redis.call('GET', KEYS[1])
if value and value ~= ARGV[1] then return 0 end
if ARGV[2] == '' then return redis.call('DEL', KEYS[1], KEYS[2], KEYS[3]) end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
""")
