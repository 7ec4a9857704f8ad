-- Keep a request that cannot be answered, with the reason, for an operator to look at. Once, and by its owner only.
local id, owner, code, reason, max_letters, keep_s = unpack(ARGV)
local meta = meta_key(id)
local state = redis.call('HMGET', meta, 'owner', 'request', 'attempt', 'buried')
if state[1] ~= owner or state[4] then return 0 end
redis.call('HSET', meta, 'buried', 1)
redis.call('XADD', base .. ':dead', 'MAXLEN', '~', max_letters, '*', 'id', id, 'code', code, 'reason', reason,
  'consumer', owner, 'tries', state[3] or 0, 'request', state[2])
redis.call('EXPIRE', base .. ':dead', keep_s)
return 1
