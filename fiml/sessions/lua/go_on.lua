-- Resume a live session that has expired; one that hasn't keeps its expiry.
-- KEYS 1 header, 2 audit trail
-- ARGV 1 caller ('' for any), 2 now, 3 the new expiry, in microseconds; 4 the entry of the trail up to the version,
--      5 newest format known
-- Returns {'live'}; {'viewer'} if the caller may only read; {'format', number} if a later fiml wrote the session; nil
-- if the caller doesn't see it.
local right = right_of_caller()
if not right then return nil end
if right < 2 then return {'viewer'} end

local expires, accessed, version, format = numbers_of('expires', 'accessed', 'version', 'format')
if tonumber(format) > tonumber(ARGV[5]) then return {'format', format} end
if tonumber(ARGV[2]) >= tonumber(expires) then
  raise_version(KEYS[2], ARGV[4], version, format, ARGV[5])
  redis.call('HSET', KEYS[1], 'expires', ARGV[3])
end
if tonumber(ARGV[2]) > tonumber(accessed) then redis.call('HSET', KEYS[1], 'accessed', ARGV[2]) end
return {'live'}
