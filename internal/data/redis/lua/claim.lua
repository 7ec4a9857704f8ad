-- Deliver requests to a worker: first those whose lease has run out, then those that wait, one of each user in turn.
-- ARGV: its name, room, lease, how many attempts in silence are the most, how many more suspects it may take, whether
-- it has none ('1'), and whether its model sleeps ('1').
-- Returns {when to ask again (ms; 0: when told to), turns whose last worker it is, turns whose last worker is another,
-- deliveries}. A delivery is {id, attempt, owner, request, cancelled, earlier attempts in silence, log, deaths}: how
-- many of its workers have died, when it is taken over from one that has.
--
-- A worker that dies takes all down that it works on, and one of them may be why it died. Whose worker died before it
-- said a word is a suspect. Few suspects are tried together, and the last attempt of one is made beside no other: so a
-- request that kills its workers meets its neighbours too seldom for them to end with it.
--
-- A turn that continues what a worker has served is left for that one for a moment after it was published, while it
-- lives and has room: its engine need not read again what was said before. Who passes it by passes its user by, who
-- stays first in the ring: within a user nothing is overtaken. Cost: one request is looked at for each delivered, and
-- one more for each that is left; of those there are at most as many as the other workers have room for.
--
-- A worker whose model sleeps leaves, in the same way, what has just come to others that have room: they may answer at
-- once, and it would load its model for nothing. It waits longer than they leave turns for each other.
local name, room, lease_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local max_silent, suspects, alone = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == '1'
local asleep = ARGV[7] == '1'
local LOOK_AT = 1000
local ASLEEP_MS = 400
-- For how long an engine may still have what a conversation consists of.
local REMEMBERED_MS = 3600000
local deliveries = {}

local function deliver(id, taken_over, conversation)
  local delivery = take(id, name, lease_ms)
  if delivery then
    redis.call('HINCRBY', meta_key(id), 'silent', 1)
    if taken_over then delivery[8] = redis.call('HINCRBY', meta_key(id), 'deaths', 1) end
    if conversation then redis.call('SET', last_key(conversation), name, 'PX', REMEMBERED_MS) end
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
    if may_be_tried(id) then deliver(id, true, redis.call('HGET', meta_key(id), 'conversation')) end
  end
end

local ask_again_ms, at_last_worker, elsewhere = 0, 0, 0
local rooms, passed, frees_next = {}, {}, false

local function ask_again_in(left_ms)
  if ask_again_ms == 0 or left_ms < ask_again_ms then ask_again_ms = left_ms end
end

-- Whether a request that waits since then is left for whoever is awake.
local room_elsewhere
local function is_left_awake(since_ms)
  local left_ms = since_ms + ASLEEP_MS - NOW_MS
  if not asleep or left_ms <= 0 then return false end
  if not room_elsewhere then room_elsewhere = free_room(living_workers()) - room_of(name) end
  if room_elsewhere <= 0 then return false end
  room_elsewhere = room_elsewhere - 1
  ask_again_in(left_ms)
  return true
end

-- Whether a request is left for `last`, the worker that served what it continues.
local function is_left(last, left_until_ms)
  if not last or last == name or left_until_ms <= NOW_MS then return false end
  local its_room = rooms[last] or room_of(last)
  if its_room <= 0 then return false end
  rooms[last] = its_room - 1
  ask_again_in(left_until_ms - NOW_MS)
  return true
end

local function deliver_next(user)
  local id = redis.call('LPOP', line_key(user))
  if not id then return end
  local state = redis.call('HMGET', meta_key(id), 'conversation', 'last', 'left_until', 'waits_since')
  local last, left_until_ms = state[2], tonumber(state[3] or 0)
  if is_left_awake(tonumber(state[4] or 0)) or is_left(last, left_until_ms) then
    redis.call('LPUSH', line_key(user), id)
    keep(line_key(user)) -- it may be a new one: the last id out of it ended the list
    passed[#passed + 1] = user
    return
  end
  redis.call('ZREM', base .. ':waiting', id)
  if redis.call('EXISTS', line_key(user)) == 1 then
    redis.call('RPUSH', base .. ':ring', user)
    keep(base .. ':ring') -- it may be a new one: the last user out of it ends a list
    -- Who has passed the user by because of this request may take the next one.
    if left_until_ms > NOW_MS then frees_next = true end
  end
  if last == name then
    at_last_worker = at_last_worker + 1
  elseif last then
    elsewhere = elsewhere + 1
  end
  deliver(id, false, state[1])
end

while #deliveries < room do
  local user = redis.call('LPOP', base .. ':ring')
  if not user then break end
  deliver_next(user)
end
for i = #passed, 1, -1 do redis.call('LPUSH', base .. ':ring', passed[i]) end
if #passed > 0 then keep(base .. ':ring') end
if frees_next then redis.call('PUBLISH', base .. ':ready', '') end
report(name, room - #deliveries, lease_ms)
return {ask_again_ms, at_last_worker, elsewhere, deliveries}
