-- Apply a change to a live session: all of it or nothing. Values stay as they are, undecoded.
-- KEYS 1 header, 2 entries, 3 queries, 4 ids of the queries, 5 audit trail
-- ARGV 1 caller ('' for any), 2 now in microseconds, 3 expected version ('' for any), 4 newest format known,
--      5 most queries, 6 most bytes of queries, 7 most bytes of entries, 8 most assets, 9 most tags,
--      10 most changes, 11 the entry of the trail up to the version;
--      then groups, each with its length first: scalars to set (field, value; '' removes the field), names to remove
--      (field), names to add (field), entries to remove (field), entries to set (field, value), queries (id, JSON,
--      type, 1 for a cache hit, microseconds of its time, milliseconds it took or '', their bucket or '', its day)
-- Returns {'written', version, life, expiry, totals, types, times, days}, the last four as they are stored; the same
-- with 'known' where there were only queries that are there already; {'old'} where the totals aren't packed yet;
-- nil where the session isn't there for this caller; or a refusal: {'viewer'}, {'expired', expiry},
-- {'conflict', version}, {'format', number}, {'changes'}, {'queries'}, {'history'}, {'maps', bytes},
-- {'assets', count}, {'tags', count}.
local header, entries, queries, ids = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

-- Counts by name. Without one they are an empty text, since cmsgpack would make an array of them.
local function unpacked(text) return text == '' and {} or cmsgpack.unpack(text) end
local function packed(counts) return next(counts) and cmsgpack.pack(counts) or '' end
local function add(counts, name) counts[name] = (counts[name] or 0) + 1 end

local right = right_of_caller()
if not right then return nil end
if right < 2 then return {'viewer'} end
local before = redis.call('HMGET', header, 'expires', 'version', 'life', 'format', 'accessed', 'maps_bytes',
  'history_bytes', 'totals', 'types', 'times', 'days')
if tonumber(before[4]) > tonumber(ARGV[4]) then return {'format', before[4]} end
if tonumber(ARGV[2]) >= tonumber(before[1]) then return {'expired', before[1]} end
if ARGV[3] ~= '' and ARGV[3] ~= before[2] then return {'conflict', before[2]} end
if tonumber(before[2]) >= tonumber(ARGV[10]) then return {'changes'} end
if not before[8] then return {'old'} end
-- What is damaged fails here, before anything was written.
local life, totals, types, times, days = before[3], before[8], before[9], before[10], before[11]
assert(life and types and times and days, 'the header has lost a field')
local accessed, maps_bytes, history_bytes = ARGV[2], before[6] + 0, before[7] + 0
if before[5] + 0 > ARGV[2] + 0 then accessed = before[5] end

local at = 12
local function group(width)
  local items = {}
  local count = tonumber(ARGV[at])
  at = at + 1
  for i = 1, count do
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

if #fresh > 0 then
  -- How many queries, cache hits, timed ones, their milliseconds, the first and the last moment ('' for none).
  local sums, kinds, buckets, dates = cmsgpack.unpack(totals), unpacked(types), unpacked(times), unpacked(days)
  for _, i in ipairs(fresh) do
    local moment = ARGV[i + 4]
    sums[1] = sums[1] + 1
    if ARGV[i + 3] == '1' then sums[2] = sums[2] + 1 end
    if ARGV[i + 5] ~= '' then
      sums[3], sums[4] = sums[3] + 1, sums[4] + tonumber(ARGV[i + 5])
      add(buckets, ARGV[i + 6])
    end
    if sums[5] == '' or tonumber(moment) < tonumber(sums[5]) then sums[5] = moment end
    if sums[6] == '' or tonumber(moment) > tonumber(sums[6]) then sums[6] = moment end
    add(kinds, ARGV[i + 2])
    add(dates, ARGV[i + 7])
  end
  if sums[1] > tonumber(ARGV[5]) then return {'queries'} end
  if history_bytes > tonumber(ARGV[6]) then return {'history'} end
  totals, types, times, days = cmsgpack.pack(sums), packed(kinds), packed(buckets), packed(dates)
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

if #names_added > 0 or #names_removed > 0 then
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

-- Do. The trail first, since it alone can be refused: by a key of another type.
local version = string.format('%.0f', tonumber(before[2]) + 1)
redis.call('RPUSH', KEYS[5], ARGV[11] .. version .. ']')
local expires = before[1]
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
  redis.call('HSETNX', header, ARGV[i], redis.call('HINCRBY', header, 'order', 1))
end
for _, i in ipairs(entries_removed) do redis.call('HDEL', entries, ARGV[i]) end
for _, i in ipairs(entries_set) do redis.call('HSET', entries, ARGV[i], ARGV[i + 1]) end

for _, i in ipairs(fresh) do
  redis.call('SADD', ids, ARGV[i])
  redis.call('RPUSH', queries, ARGV[i + 1])
end

redis.call('HSET', header, 'version', version, 'format', ARGV[4], 'accessed', accessed, 'maps_bytes', maps_bytes,
  'history_bytes', history_bytes, 'totals', totals, 'types', types, 'times', times, 'days', days)
return {'written', version, life, expires, totals, types, times, days}
