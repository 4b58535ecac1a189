-- Remove a live session, and remember its version as the floor: for a while, no copy up to it can become live.
-- KEYS 1 header, 2 entries, 3 queries, 4 ids of the queries, 5 audit trail, 6 floor
-- ARGV 1 only at this version ('' for any), 2 the floor: that version, or 'deleted', 3 seconds to remember it
-- Returns 'removed'; 'changed' if it has another version; 'absent', unless the floor is 'deleted'.
local version = redis.call('TYPE', KEYS[1]).ok == 'hash' and redis.call('HGET', KEYS[1], 'version')
if version and ARGV[1] ~= '' and version ~= ARGV[1] then return 'changed' end
if not version and ARGV[2] ~= 'deleted' then return 'absent' end
-- First: a server that is out of memory refuses a script's writes until the script has freed some.
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5])
redis.call('SET', KEYS[6], ARGV[2], 'EX', ARGV[3])
return 'removed'
