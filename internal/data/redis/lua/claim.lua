-- Deliver requests to a worker: first those whose lease has run out, then those that wait, one of each user in turn.
-- ARGV: its name, room, lease, how many attempts in silence are the most, how many more suspects it may take, and
-- whether it has none ('1').
-- Returns a list of {id, attempt, owner, request, cancelled, earlier attempts in silence, log, deaths}: how many of its
-- workers have died, when it is taken over from one that has.
--
-- A worker that dies takes all down that it works on, and one of them may be why it died. Whose worker died before it
-- said a word is a suspect. Few suspects are tried together, and the last attempt of one is made beside no other: so a
-- request that kills its workers meets its neighbours too seldom for them to end with it.
local name, room, lease_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local max_silent, suspects, alone = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == '1'
local LOOK_AT = 1000
local deliveries = {}

local function deliver(id, taken_over)
  local delivery = take(id, name, lease_ms)
  if delivery then
    redis.call('HINCRBY', meta_key(id), 'silent', 1)
    if taken_over then delivery[8] = redis.call('HINCRBY', meta_key(id), 'deaths', 1) end
    deliveries[#deliveries + 1] = delivery
  end
end

local function may_be_tried(id)
  local state = redis.call('HMGET', meta_key(id), 'silent', 'cancelled')
  local silent = tonumber(state[1] or 0)
  if silent == 0 or silent >= max_silent or state[2] then return true end -- it spoke; or it will only be ended
  if silent == max_silent - 1 then
    if not alone then return false end
    alone, suspects = false, 0
  else
    if suspects <= 0 then return false end
    alone, suspects = false, suspects - 1
  end
  return true
end

if may_take_over(lease_ms) then
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', base .. ':running', '-inf', NOW_MS, 'LIMIT', 0, room + LOOK_AT)) do
    if #deliveries >= room then break end
    if may_be_tried(id) then deliver(id, true) end
  end
end
while #deliveries < room do
  local id = next_waiting()
  if not id then break end
  deliver(id, false)
end
report(name, room - #deliveries, lease_ms)
return deliveries
