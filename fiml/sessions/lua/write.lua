-- Apply a change to a live session: all of it or nothing. Values stay as they are, undecoded.
-- KEYS 1 header, 2 entries, 3 queries, 4 ids of the queries, 5 audit trail
-- ARGV 1 caller ('' for any), 2 now in microseconds, 3 expected version ('' for any), 4 newest format known,
--      5 most queries, 6 most bytes of queries, 7 most bytes of entries, 8 most assets, 9 most tags,
--      10 most changes, 11 the entry of the trail up to the version;
--      then groups, each with its length first: scalars to set (field, value; '' removes the field), names to remove
--      (field), names to add (field), entries to remove (field), entries to set (field, value), queries (id, JSON,
--      type, 1 for a cache hit, microseconds of its time, milliseconds it took or '', their bucket or '', its day)
-- Returns {'written', version, life, expiry, totals, types, times, days}, the last four as they are stored; the same
-- with 'known' where there were only queries that are there already; nil where the session isn't there for this
-- caller; or a refusal: {'viewer'}, {'expired', expiry}, {'conflict', version}, {'format', number}, {'changes'},
-- {'queries'}, {'history'}, {'maps', bytes}, {'assets', count}, {'tags', count}.
local header, entries, queries, ids = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

local right = right_of_caller()
if not right then return nil end
if right < 2 then return {'viewer'} end
local before = redis.call('HMGET', header, 'expires', 'version', 'life', 'format', 'accessed', 'maps_bytes',
  'history_bytes', 'totals', 'types', 'times', 'days')
if string.find(before[4], '^%d+$') and tonumber(before[4]) > tonumber(ARGV[4]) then return {'format', before[4]} end
-- What is damaged fails from here to where it says 'Do', before anything was written.
local numbers = table.concat(before, ' ', 1, 7)
assert(string.find(numbers, '^%-?%d+ %d+ %d+ %d+ %-?%d+ %d+ %d+$'), 'a field of the header is no number')
if tonumber(ARGV[2]) >= tonumber(before[1]) then return {'expired', before[1]} end
if ARGV[3] ~= '' and ARGV[3] ~= before[2] then return {'conflict', before[2]} end
if tonumber(before[2]) >= tonumber(ARGV[10]) then return {'changes'} end
local expires, life, accessed = before[1], before[3], before[5]
if tonumber(ARGV[2]) > tonumber(accessed) then accessed = ARGV[2] end
local maps_bytes, history_bytes = tonumber(before[6]), tonumber(before[7])

local at = 12
local function group(width)
  local items = {}
  local length = tonumber(ARGV[at])
  at = at + 1
  for i = 1, length do
    items[i] = at
    at = at + width
  end
  return items
end
local scalars, names_removed, names_added = group(2), group(1), group(1)
local entries_removed, entries_set, appended = group(1), group(2), group(8)

-- Decide: nothing is written before every limit was checked.
local fresh, in_this_change = {}, {}
for _, i in ipairs(appended) do
  if not in_this_change[ARGV[i]] and redis.call('SISMEMBER', ids, ARGV[i]) == 0 then
    in_this_change[ARGV[i]] = true
    fresh[#fresh + 1] = i
    history_bytes = history_bytes + #ARGV[i + 1]
  end
end

local totals, types, times, days = before[8], before[9], before[10], before[11]
local sums, by_type, by_time, by_day, fields_of_before
if totals then
  sums, by_type, by_time, by_day = cmsgpack.unpack(totals), unpacked(types), unpacked(times), unpacked(days)
  assert(type(sums) == 'table' and #sums == 6, 'the totals are none')
else
  sums, by_type, by_time, by_day, fields_of_before = totals_of_before(header)
end
for _, i in ipairs(fresh) do
  local moment = ARGV[i + 4]
  sums[1] = sums[1] + 1
  if ARGV[i + 3] == '1' then sums[2] = sums[2] + 1 end
  if ARGV[i + 5] ~= '' then
    sums[3], sums[4] = sums[3] + 1, sums[4] + tonumber(ARGV[i + 5])
    count(by_time, ARGV[i + 6])
  end
  if sums[5] == '' or is_earlier(moment, sums[5]) then sums[5] = moment end
  if sums[6] == '' or is_earlier(sums[6], moment) then sums[6] = moment end
  count(by_type, ARGV[i + 2])
  count(by_day, ARGV[i + 7])
end
if #fresh > 0 then
  if sums[1] > tonumber(ARGV[5]) then return {'queries'} end
  if history_bytes > tonumber(ARGV[6]) then return {'history'} end
  redis.call('LRANGE', queries, 1, 0)  -- of nothing: it refuses a key of another type
end
if #fresh > 0 or fields_of_before then
  totals, types, times, days = cmsgpack.pack(sums), packed(by_type), packed(by_time), packed(by_day)
end

-- An encrypted value counts as what it holds (see sealed.py), so that encryption moves no limit.
local function size_of(text)
  local head = string.match(text, '^"fiml%-enc:1:[%w_.-]+:')
  if not head then return #text end
  return math.floor((#text - #head - 1) * 3 / 4) - 28
end
local function stored_size(field)
  local text = redis.call('HGET', entries, field)
  if not text then return 0 end
  return size_of(text) + #field - 2
end
for _, i in ipairs(entries_removed) do maps_bytes = maps_bytes - stored_size(ARGV[i]) end
for _, i in ipairs(entries_set) do
  maps_bytes = maps_bytes - stored_size(ARGV[i]) + #ARGV[i] - 2 + size_of(ARGV[i + 1])
end
if #entries_set > 0 and maps_bytes > tonumber(ARGV[7]) then return {'maps', maps_bytes} end

local order = 0
if #names_added > 0 or #names_removed > 0 then
  order = redis.call('HGET', header, 'order')
  assert(string.find(order, '^%d+$'), 'the order is no number')
  local names = {}
  for _, field in ipairs(redis.call('HKEYS', header)) do names[field] = true end
  for _, i in ipairs(names_removed) do names[ARGV[i]] = nil end
  for _, i in ipairs(names_added) do names[ARGV[i]] = true end
  local assets, tags = 0, 0
  for field in pairs(names) do
    local kind = string.sub(field, 1, 2)
    if kind == 'a:' then assets = assets + 1 elseif kind == 't:' then tags = tags + 1 end
  end
  if assets == 0 or assets > tonumber(ARGV[8]) then return {'assets', assets} end
  if tags > tonumber(ARGV[9]) then return {'tags', tags} end
end

local others = #scalars + #names_removed + #names_added + #entries_removed + #entries_set
if #appended > 0 and #fresh == 0 and others == 0 then
  -- All of it is there already: an access, and no change.
  if accessed ~= before[5] then redis.call('HSET', header, 'accessed', accessed) end
  return {'known', before[2], life, before[1], totals, types, times, days}
end

-- Do. The trail first, since it alone can still be refused: by a key of another type.
local version = string.format('%.0f', tonumber(before[2]) + 1)
redis.call('RPUSH', KEYS[5], ARGV[11] .. version .. ']')
for _, i in ipairs(scalars) do
  if ARGV[i] == 'expires' then expires = ARGV[i + 1] end
  if ARGV[i + 1] == '' then
    redis.call('HDEL', header, ARGV[i])
  else
    redis.call('HSET', header, ARGV[i], ARGV[i + 1])
  end
end
for _, i in ipairs(names_removed) do redis.call('HDEL', header, ARGV[i]) end
for _, i in ipairs(names_added) do
  order = order + 1
  redis.call('HSETNX', header, ARGV[i], order)
  redis.call('HSET', header, 'order', order)
end
for _, i in ipairs(entries_removed) do redis.call('HDEL', entries, ARGV[i]) end
for _, i in ipairs(entries_set) do redis.call('HSET', entries, ARGV[i], ARGV[i + 1]) end

for _, i in ipairs(fresh) do
  redis.call('SADD', ids, ARGV[i])
  redis.call('RPUSH', queries, ARGV[i + 1])
end

for _, field in ipairs(fields_of_before or {}) do redis.call('HDEL', header, field) end
-- A record of format 1 lacks totals, which only counting anew brings: it stays what it is.
local format = tonumber(before[4]) > 1 and ARGV[4] or before[4]
redis.call('HSET', header, 'version', version, 'format', format, 'accessed', accessed, 'maps_bytes', maps_bytes,
  'history_bytes', history_bytes, 'totals', totals, 'types', types, 'times', times, 'days', days)
return {'written', version, life, expires, totals, types, times, days}
