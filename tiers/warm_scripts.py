"""The scripts that write to warm: each checks the partition's epoch and touches keys of one bucket only.

A script is atomic, also in the append-only file, and its reply comes after the fsync (`appendfsync always`). What it
writes stands at its end, so that one that fails has changed nothing. Lua's numbers are doubles: a version is compared
as two 32-bit halves and never as a whole. `allow-oom`: what frees memory or completes a batch is not refused.
"""

from __future__ import annotations

from tiers.codec import ATTRIBUTES_AT, DIM_AT, HEADER, VERSION_AT
from tiers.valkey import Script

ROWS_MAX = 2_000  # a call: Lua's unpack takes 8,000 values, a row is two

_FENCE = """
local epoch = redis.call('GET', KEYS[1])
if epoch ~= ARGV[1] then
  return redis.error_reply('FENCED ' .. KEYS[1] .. ' has epoch ' .. (epoch or 'none') .. ', the write ' .. ARGV[1])
end
"""

# Rows that are all new, as those that leave hot mostly are, are told by one EXISTS and need no comparison.
_STORE = f"""{_FENCE}
local winners, held = {{}}, {{}}
if redis.call('EXISTS', unpack(KEYS, 2)) == 0 then
  for i = 2, #KEYS do
    winners[2 * i - 3] = KEYS[i]
    winners[2 * i - 2] = ARGV[i]
  end
  redis.call('MSET', unpack(winners))
  return ''
end
for i = 2, #KEYS do
  local new = string.sub(ARGV[i], {VERSION_AT + 1}, {VERSION_AT + 8})
  local old = redis.call('GETRANGE', KEYS[i], {VERSION_AT}, {VERSION_AT + 7})
  local newer = #old == 0
  if #old == 8 then
    local new_low, new_high = struct.unpack('<I4I4', new)
    local old_low, old_high = struct.unpack('<I4I4', old)
    newer = new_high > old_high or (new_high == old_high and new_low > old_low)
  elseif #old > 0 then
    return redis.error_reply('CORRUPT the value of ' .. KEYS[i] .. ' is cut short')
  end
  if newer then
    winners[#winners + 1] = KEYS[i]
    winners[#winners + 1] = ARGV[i]
  end
  held[i - 1] = newer and new or old
end
if #winners > 0 then redis.call('MSET', unpack(winners)) end
return table.concat(held)
"""

#: As STORE, for the later calls of a batch, whose first one was let in.
STORE_ON = Script(f"#!lua flags=allow-oom{_STORE}")
#: KEYS: epoch, rows of distinct ids. ARGV: epoch, packed rows. Returns 8 bytes a row: the version held afterwards; or
#: nothing, where all of them were new.
STORE = Script(f"#!lua{_STORE}", STORE_ON)

#: KEYS: epoch, rows. ARGV: epoch, and 8 bytes a row: the version to drop (absent: any). Returns how many were dropped.
EVICT = Script(f"""#!lua flags=allow-oom{_FENCE}
local gone = {{}}
for i = 2, #KEYS do
  local version = ARGV[2] and string.sub(ARGV[2], 8 * i - 15, 8 * i - 8)
  if not version or version == redis.call('GETRANGE', KEYS[i], {VERSION_AT}, {VERSION_AT + 7}) then
    gone[#gone + 1] = KEYS[i]
  end
end
return #gone > 0 and redis.call('UNLINK', unpack(gone)) or 0
""")

#: KEYS: rows. Returns of each its header and its packed attributes, end to end; nothing of one that is not there.
LIST = Script(f"""#!lua flags=no-writes
local found = {{}}
for i = 1, #KEYS do
  local head = redis.call('GETRANGE', KEYS[i], 0, {HEADER.size - 1})
  if #head == {HEADER.size} then
    local dim, id = struct.unpack('<I2I2', head, {DIM_AT + 1})
    local attributes = struct.unpack('<I4', head, {ATTRIBUTES_AT + 1})
    local at = {HEADER.size} + id + 4 * dim
    if attributes > 0 then head = head .. redis.call('GETRANGE', KEYS[i], at, at + attributes - 1) end
  end
  found[i] = head
end
return found
""")

#: KEYS: rows. Returns 8 bytes a row: how many its packed attributes and its payload have, two numbers of 32 bits.
SIZES = Script(f"""#!lua flags=no-writes
local found = {{}}
for i = 1, #KEYS do
  local size = redis.call('GETRANGE', KEYS[i], {ATTRIBUTES_AT}, {ATTRIBUTES_AT + 7})
  found[i] = #size == 8 and size or string.rep('\\0', 8)
end
return table.concat(found)
""")

#: KEYS: epoch. ARGV: the epoch to set, the highest that may be there now.
RAISE = Script("""#!lua flags=allow-oom
local present = tonumber(redis.call('GET', KEYS[1]) or '0')
if present > tonumber(ARGV[2]) then
  return redis.error_reply('FENCED ' .. KEYS[1] .. ' has epoch ' .. present .. ' and cannot get ' .. ARGV[1])
end
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
""")

SCRIPTS = (STORE, STORE_ON, EVICT, RAISE, LIST, SIZES)
