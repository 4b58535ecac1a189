-- Comes first in each script that a caller runs.
-- KEYS 1 header; ARGV 1 caller ('' for any)
-- Returns 3 for the owner, 2 for an editor, 1 for a viewer; nil where the session isn't there for this caller.
local function right_of_caller()
  if ARGV[1] == '' then return redis.call('EXISTS', KEYS[1]) == 1 and 3 or nil end
  local held = redis.call('HMGET', KEYS[1], 'user', 's:' .. ARGV[1])
  if held[1] == ARGV[1] then return 3 end
  return held[2] and tonumber(held[2]) or nil
end
