-- Comes first in each script that a caller runs.
-- KEYS 1 header; ARGV 1 caller ('' for any)
-- Returns 3 for the owner, 2 for an editor, 1 for a viewer; nil where the session isn't there for this caller.
local function right_of_caller()
  if ARGV[1] == '' then return redis.call('EXISTS', KEYS[1]) == 1 and 3 or nil end
  local held = redis.pcall('HMGET', KEYS[1], 'user', 's:' .. ARGV[1])
  if held.err then
    -- What is no hash is nobody's.
    return not string.find(held.err, '^WRONGTYPE') and error(held.err) or nil
  end
  if held[1] == ARGV[1] then return 3 end
  return held[2] and tonumber(held[2]) or nil
end

-- The values of fields of the header. One that is no number ends the script: before it writes anything.
local function numbers_of(...)
  local found = redis.call('HMGET', KEYS[1], ...)
  for i, name in ipairs({...}) do
    assert(string.find(found[i] or '', '^%-?%d+$'), name .. ' is no number')
  end
  return unpack(found)
end
