-- Let nobody write to a live session for a while, since it is being archived; or let them write again.
-- KEYS 1 header
-- ARGV 1 caller ('' for any), 2 until when, in microseconds, 0 to end it
-- Returns 1; nil if the caller doesn't see the session, or may only read it.
local right = right_of_caller()
if not right or right < 2 then return nil end
redis.call('HSET', KEYS[1], 'closing', ARGV[2])
return 1
