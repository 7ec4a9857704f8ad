-- The nodes that follow a response, as one string; false when it has ended or is unknown.
local state = redis.call('HMGET', meta_key(ARGV[1]), 'nodes', 'ended')
if not state[1] or state[2] then return false end
return state[1]
