-- Apply a change to a live session: the whole change, or nothing. Values are stored as they come, undecoded.
-- KEYS 1 header, 2 entries, 3 queries, 4 ids of the queries, 5 audit trail
-- ARGV 1 caller ('' for any), 2 the change, as MessagePack, then id and JSON of each query. A change consists of
--      now, in microseconds as text; the entry of the trail up to the version; the expected version or false; the
--      newest format known; the most queries, bytes of queries, bytes of entries, assets, tags, changes;
--      for each query its type, whether it was a cache hit, the microseconds of its time as text, the milliseconds that
--      it took or false, their bucket or false, its day;
--      and false if there are only queries, or else: scalars by field ('' removes it), fields of names to remove and to
--      add, fields of entries to remove, and field and value of entries to set
-- Returns {'written', version, life, expiry, totals, types, times, days}, the last four as they are stored; the same
-- with 'known' if there were only queries that are there already; nil if the caller doesn't see the session; or a
-- refusal: {'viewer'}, {'expired', expiry}, {'closing'}, {'conflict', version}, {'format', number}, {'changes'},
-- {'queries'}, {'history'}, {'maps', bytes}, {'assets', count}, {'tags', count}.
local header, entries, queries, ids = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local now, entry, expected_version, newest_format, max_queries, max_history_bytes, max_maps_bytes, max_assets, max_tags,
  max_changes, asked, others = unpack(cmsgpack.unpack(ARGV[2]))

local right = right_of_caller()
if not right then return nil end
if right < 2 then return {'viewer'} end
local before = redis.call('HMGET', header, 'expires', 'version', 'life', 'format', 'accessed', 'maps_bytes',
  'history_bytes', 'totals', 'types', 'times', 'days', 'closing')
if string.find(before[4], '^%d+$') and tonumber(before[4]) > newest_format then return {'format', before[4]} end
-- From here to 'Do' below, damage makes the script fail before it has written anything.
local numbers = table.concat(before, ' ', 1, 7)
assert(string.find(numbers, '^%-?%d+ %d+ %d+ %d+ %-?%d+ %d+ %d+$'), 'a field of the header is no number')
if tonumber(now) >= tonumber(before[1]) then return {'expired', before[1]} end
if tonumber(now) < tonumber(before[12] or 0) then return {'closing'} end
if expected_version and expected_version ~= tonumber(before[2]) then return {'conflict', before[2]} end
local expires, life, accessed = before[1], before[3], before[5]
if tonumber(now) > tonumber(accessed) then accessed = now end
local maps_bytes, history_bytes = tonumber(before[6]), tonumber(before[7])

local none = {}
local scalars, names_removed, names_added, entries_removed, entries_set = none, none, none, none, none
if others then scalars, names_removed, names_added, entries_removed, entries_set = unpack(others) end

-- Decide. Every limit is checked before anything is written.
local fresh, in_this_change = {}, {}
for i = 1, #asked do
  local id, json = ARGV[1 + 2 * i], ARGV[2 + 2 * i]
  if not in_this_change[id] and redis.call('SISMEMBER', ids, id) == 0 then
    in_this_change[id] = true
    fresh[#fresh + 1] = i
    history_bytes = history_bytes + #json
  end
end

local totals, types, times, days = before[8], before[9], before[10], before[11]
local sums, by_type, by_time, by_day, fields_of_before
if totals then
  sums, by_type, by_time, by_day = cmsgpack.unpack(totals), unpacked(types), unpacked(times), unpacked(days)
  assert(type(sums) == 'table' and #sums == 6, 'the totals are not six values')
else
  sums, by_type, by_time, by_day, fields_of_before = totals_of_before(header)
end
for _, i in ipairs(fresh) do
  local kind, is_hit, moment, took_ms, bucket, day = unpack(asked[i])
  sums[1] = sums[1] + 1
  if is_hit then sums[2] = sums[2] + 1 end
  if took_ms then
    sums[3], sums[4] = sums[3] + 1, sums[4] + took_ms
    count(by_time, bucket)
  end
  if sums[5] == '' or is_earlier(moment, sums[5]) then sums[5] = moment end
  if sums[6] == '' or is_earlier(sums[6], moment) then sums[6] = moment end
  count(by_type, kind)
  count(by_day, day)
end
if #fresh > 0 then
  if sums[1] > max_queries then return {'queries'} end
  if history_bytes > max_history_bytes then return {'history'} end
  redis.call('LRANGE', queries, 1, 0)  -- reads nothing, but fails if the key has another type
end
local is_known = #fresh == 0 and not others
if not is_known and tonumber(before[2]) >= max_changes then return {'changes'} end
if #fresh > 0 or fields_of_before then
  totals, types, times, days = cmsgpack.pack(sums), packed(by_type), packed(by_time), packed(by_day)
end

-- An encrypted value counts with its size before encryption (see sealed.py), so that encryption changes no limit.
local function size_of(text)
  local head, key = string.match(text, '^("fiml%-enc:1:([%w_.-]+):)')
  if not head or #key > 32 then return #text end
  return math.floor((#text - #head - 1) * 3 / 4) - 28
end
local is_counted = {}
local function stored_size(field)
  local text = not is_counted[field] and redis.call('HGET', entries, field)
  if not text then return 0 end
  is_counted[field] = true
  return size_of(text) + #field - 2
end
for _, field in ipairs(entries_removed) do maps_bytes = maps_bytes - stored_size(field) end
for _, each in ipairs(entries_set) do
  local field, text = unpack(each)
  maps_bytes = maps_bytes - stored_size(field) + #field - 2 + size_of(text)
end
if #entries_set > 0 and maps_bytes > max_maps_bytes then return {'maps', maps_bytes} end

local order = 0
if #names_added > 0 or #names_removed > 0 then
  order = redis.call('HGET', header, 'order')
  assert(string.find(order, '^%d+$'), 'the order is no number')
  local names = {}
  for _, field in ipairs(redis.call('HKEYS', header)) do names[field] = true end
  for _, field in ipairs(names_removed) do names[field] = nil end
  for _, field in ipairs(names_added) do names[field] = true end
  local assets, tags = 0, 0
  for field in pairs(names) do
    local kind = string.sub(field, 1, 2)
    if kind == 'a:' then assets = assets + 1 elseif kind == 't:' then tags = tags + 1 end
  end
  if assets == 0 or assets > max_assets then return {'assets', assets} end
  if tags > max_tags then return {'tags', tags} end
end

if is_known then
  -- Everything is there already: this is an access, but no change.
  if accessed ~= before[5] then redis.call('HSET', header, 'accessed', accessed) end
  return {'known', before[2], life, before[1], totals, types, times, days}
end

-- Do. The trail first, since only this can still fail: if the key has another type.
local version = string.format('%.0f', tonumber(before[2]) + 1)
redis.call('RPUSH', KEYS[5], entry .. version .. ']')
for field, value in pairs(scalars) do
  if field == 'expires' then expires = value end
  if value == '' then
    redis.call('HDEL', header, field)
  else
    redis.call('HSET', header, field, value)
  end
end
for _, field in ipairs(names_removed) do redis.call('HDEL', header, field) end
for _, field in ipairs(names_added) do
  order = order + 1
  redis.call('HSETNX', header, field, order)
  redis.call('HSET', header, 'order', order)
end
for _, field in ipairs(entries_removed) do redis.call('HDEL', entries, field) end
for _, each in ipairs(entries_set) do redis.call('HSET', entries, each[1], each[2]) end

for _, i in ipairs(fresh) do
  redis.call('SADD', ids, ARGV[1 + 2 * i])
  redis.call('RPUSH', queries, ARGV[2 + 2 * i])
end

for _, field in ipairs(fields_of_before or {}) do redis.call('HDEL', header, field) end
-- A record of format 1 lacks totals, which only counting all queries would provide: it keeps its format.
local format = tonumber(before[4]) > 1 and newest_format or before[4]
redis.call('HSET', header, 'version', version, 'format', format, 'accessed', accessed, 'maps_bytes', maps_bytes,
  'history_bytes', history_bytes, 'totals', totals, 'types', types, 'times', times, 'days', days)
return {'written', version, life, expires, totals, types, times, days}
