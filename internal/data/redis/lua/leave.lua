-- A worker takes nothing more.
local name = ARGV[1]
redis.call('ZREM', base .. ':workers', name)
redis.call('HDEL', base .. ':rooms', name)
redis.call('DEL', base .. ':worker:' .. name)
