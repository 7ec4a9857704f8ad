-- For each id how many requests go first; -1 when it does not wait.
local room = free_room(living_workers())
local users, lengths, places = redis.call('LRANGE', base .. ':ring', 0, -1), {}, {}
for place, user in ipairs(users) do
  lengths[place], places[user] = redis.call('LLEN', line_key(user)), place
end
local positions = {}
for i, id in ipairs(ARGV) do
  local user = redis.call('HGET', meta_key(id), 'user')
  local own = user and places[user]
  local rounds = own and redis.call('LPOS', line_key(user), id)
  if not rounds then
    positions[i] = -1
  else
    local ahead = own - 1
    if rounds > 0 then
      ahead = rounds
      for place, length in ipairs(lengths) do
        if place ~= own then ahead = ahead + math.min(length, rounds + (place < own and 1 or 0)) end
      end
    end
    positions[i] = math.max(0, ahead - room)
  end
end
return positions
