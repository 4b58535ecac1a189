-- What is needed to remove a live session, which may be beyond reading otherwise.
-- KEYS 1 header
-- ARGV 1 owner ('' for any)
-- Returns user, version, life and microseconds of the creation, or nil where the session isn't there for this owner.
if redis.call('EXISTS', KEYS[1]) == 0 then return nil end
if ARGV[1] ~= '' and redis.call('HGET', KEYS[1], 'user') ~= ARGV[1] then return nil end
return redis.call('HMGET', KEYS[1], 'user', 'version', 'life', 'created')
