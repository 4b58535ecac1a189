-- The totals in a header: the numbers of queries, cache hits and timed queries, the milliseconds of these, the first
-- and the last moment ('' if there is none); and the numbers of queries by type, by bucket of their time, and by day.

-- No counts at all are stored as an empty text, since cmsgpack would pack an empty table as an array.
local function unpacked(text)
  local counts = text == '' and {} or cmsgpack.unpack(text)
  assert(type(counts) == 'table', 'counts are not a table')
  return counts
end
local function packed(counts) return next(counts) and cmsgpack.pack(counts) or '' end

local function count(counts, name) counts[name] = (counts[name] or 0) + 1 end

-- Compare two moments in microseconds, also ones so far from 1970 that Lua's numbers can't tell them apart.
local function is_earlier(one, other)
  local first, second = tonumber(one), tonumber(other)
  if first ~= second or one == other then return first < second end
  local is_smaller = #one < #other or (#one == #other and one < other)
  return is_smaller == (first > 0)
end

-- The totals as releases up to 0.3 stored them, with a field for each; and the names of these fields.
local function totals_of_before(header)
  local sums, types, times, days, fields = {false, false, false, false, '', ''}, {}, {}, {}, {}
  local places = {total = 1, hits = 2, timed = 3, time_ms = 4, first = 5, last = 6}
  local counts = {['n:'] = types, ['b:'] = times, ['d:'] = days}
  local stored = redis.call('HGETALL', header)
  for i = 1, #stored, 2 do
    local field, value = stored[i], stored[i + 1]
    local place, by_name = places[field], counts[string.sub(field, 1, 2)]
    if place or by_name then
      assert(string.find(value, '^%-?%d[%d.e+-]*$'), field .. ' is no number')
      fields[#fields + 1] = field
    end
    if place then sums[place] = place < 5 and tonumber(value) or value end
    if by_name then by_name[string.sub(field, 3)] = tonumber(value) end
  end
  assert(sums[1] and sums[2] and sums[3] and sums[4], 'the header has lost a total')
  return sums, types, times, days, fields
end
