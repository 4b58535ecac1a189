-- Move the expiry of a live session later, never earlier.
-- KEYS 1 header, 2 audit trail
-- ARGV 1 caller ('' for any), 2 now, 3 by how much, 4 the latest expiry allowed, in microseconds;
--      5 the entry of the trail up to the version, 6 most changes, 7 newest format known
-- Returns {'extended'}; {'expired', expiry}; {'closing'} if the session is being archived; {'viewer'} if the caller may
-- only read; {'changes'} if there were too many; {'format', number} if a later fiml wrote the session; nil if the caller
-- doesn't see it.
local right = right_of_caller()
if not right then return nil end
if right < 2 then return {'viewer'} end

local expiry, accessed, version, format = numbers_of('expires', 'accessed', 'version', 'format')
if tonumber(format) > tonumber(ARGV[7]) then return {'format', format} end
local now, expires = tonumber(ARGV[2]), tonumber(expiry)
if now >= expires then return {'expired', expiry} end
if now < tonumber(redis.call('HGET', KEYS[1], 'closing') or 0) then return {'closing'} end

local later = math.max(expires, math.min(expires + tonumber(ARGV[3]), tonumber(ARGV[4])))
if later > expires then
  if tonumber(version) >= tonumber(ARGV[6]) then return {'changes'} end
  raise_version(KEYS[2], ARGV[5], version, format, ARGV[7])
end
redis.call('HSET', KEYS[1], 'expires', string.format('%.0f', later),
  'accessed', string.format('%.0f', math.max(tonumber(accessed), now)))
return {'extended'}
