-- Remove a live session that was copied to the quarantine, however damaged it is.
-- KEYS 1 header, 2 entries, 3 queries, 4 ids of the queries, 5 audit trail, 6 floor
-- ARGV 1 only at this version ('' if the header had none), 2 seconds to remember it
-- Returns 'removed'; 'changed' if it has another version; 'absent' if nothing is left of it.
if redis.call('EXISTS', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]) == 0 then return 'absent' end
local version = ''
if redis.call('TYPE', KEYS[1]).ok == 'hash' then version = redis.call('HGET', KEYS[1], 'version') or '' end
if version ~= ARGV[1] then return 'changed' end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5])  -- first, as in remove.lua
if tonumber(version) then redis.call('SET', KEYS[6], version, 'EX', ARGV[2]) end
return 'removed'
