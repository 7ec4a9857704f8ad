-- Tell the followers that asked for it something that is not in the log.
local channel, id, update = unpack(ARGV)
local state = redis.call('HMGET', meta_key(id), 'nodes', 'updates')
if state[1] and state[2] then
  for node in string.gmatch(state[1], '%S+') do
    redis.call('PUBLISH', channel .. node, update)
  end
end
