-- Apply a change to a live session: all of it or nothing. Values stay as they are, undecoded.
-- KEYS 1 header, 2 entries, 3 queries, 4 ids of the queries, 5 audit trail
-- ARGV 1 caller ('' for any), 2 now in microseconds, 3 expected version ('' for any), 4 newest format known,
--      5 most queries, 6 most bytes of queries, 7 most bytes of entries, 8 most assets, 9 most tags,
--      10 most changes, 11 the entry of the trail up to the version;
--      then groups, each with its length first: scalars to set (field, value; '' removes the field), names to remove
--      (field), names to add (field), entries to remove (field), entries to set (field, value), queries (id, JSON,
--      type, 1 for a cache hit, microseconds of its time, milliseconds it took or '', their bucket or '', its day)
-- Returns {'written', header}; {'known', header} where there were only queries that are there already; nil where the
-- session isn't there for this caller; or a refusal: {'viewer'}, {'expired', expiry}, {'conflict', version},
-- {'format', number}, {'changes'}, {'queries'}, {'history'}, {'maps', bytes}, {'assets', count}, {'tags', count}.
local header, entries, queries, ids = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

local right = right_of_caller()
if not right then return nil end
if right < 2 then return {'viewer'} end
local before = redis.call('HMGET', header, 'expires', 'version', 'total', 'history_bytes', 'maps_bytes', 'accessed',
  'first', 'last', 'format')
if tonumber(before[9]) > tonumber(ARGV[4]) then return {'format', before[9]} end
if tonumber(ARGV[2]) >= tonumber(before[1]) then return {'expired', before[1]} end
if ARGV[3] ~= '' and ARGV[3] ~= before[2] then return {'conflict', before[2]} end
if tonumber(before[2]) >= tonumber(ARGV[10]) then return {'changes'} end

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
local fresh, total, history_bytes = {}, tonumber(before[3]), tonumber(before[4])
local in_this_change = {}
for _, i in ipairs(appended) do
  if not in_this_change[ARGV[i]] and redis.call('SISMEMBER', ids, ARGV[i]) == 0 then
    in_this_change[ARGV[i]] = true
    fresh[#fresh + 1] = i
    total = total + 1
    history_bytes = history_bytes + #ARGV[i + 1]
  end
end
if #fresh > 0 and total > tonumber(ARGV[5]) then return {'queries'} end
if #fresh > 0 and history_bytes > tonumber(ARGV[6]) then return {'history'} end

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
local maps_bytes = tonumber(before[5])
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
  if tonumber(ARGV[2]) > tonumber(before[6]) then redis.call('HSET', header, 'accessed', ARGV[2]) end
  return {'known', redis.call('HGETALL', header)}
end

-- Do. The trail first, since it alone can be refused: by a key of another type.
redis.call('RPUSH', KEYS[5], ARGV[11] .. string.format('%.0f', tonumber(before[2]) + 1) .. ']')
for _, i in ipairs(scalars) do
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

local first, last = before[7], before[8]
for _, i in ipairs(fresh) do
  redis.call('SADD', ids, ARGV[i])
  redis.call('RPUSH', queries, ARGV[i + 1])
  redis.call('HINCRBY', header, 'n:' .. ARGV[i + 2], 1)
  if ARGV[i + 3] == '1' then redis.call('HINCRBY', header, 'hits', 1) end
  local moment = ARGV[i + 4]
  if not first or tonumber(moment) < tonumber(first) then first = moment end
  if not last or tonumber(moment) > tonumber(last) then last = moment end
  if ARGV[i + 5] ~= '' then
    redis.call('HINCRBY', header, 'timed', 1)
    redis.call('HINCRBYFLOAT', header, 'time_ms', ARGV[i + 5])
    redis.call('HINCRBY', header, 'b:' .. ARGV[i + 6], 1)
  end
  redis.call('HINCRBY', header, 'd:' .. ARGV[i + 7], 1)
end
if #fresh > 0 then
  redis.call('HSET', header, 'first', first, 'last', last, 'total', total,
    'history_bytes', string.format('%.0f', history_bytes))
end

local accessed = ARGV[2]
if tonumber(before[6]) > tonumber(accessed) then accessed = before[6] end
redis.call('HSET', header, 'accessed', accessed, 'maps_bytes', string.format('%.0f', maps_bytes))
redis.call('HINCRBY', header, 'version', 1)
-- A record of format 1 lacks totals, which only counting anew brings: it stays what it is.
if before[9] ~= ARGV[4] and tonumber(before[9]) > 1 then redis.call('HSET', header, 'format', ARGV[4]) end
return {'written', redis.call('HGETALL', header)}
