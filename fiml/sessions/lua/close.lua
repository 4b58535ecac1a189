-- Let nobody write to a live session for a while, since it is being archived.
-- KEYS 1 header
-- ARGV 1 caller ('' for any), 2 until when, in microseconds
-- Returns 1; nil where the session isn't there for this caller, or the caller may only read it.
local right = right_of_caller()
if not right or right < 2 then return nil end
redis.call('HSET', KEYS[1], 'closing', ARGV[2])
return 1
