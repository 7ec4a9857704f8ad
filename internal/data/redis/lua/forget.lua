-- Drop what is kept of a response that has ended, or is unknown. ARGV: its id. Returns 0 when it still runs.
local id = ARGV[1]
local meta = meta_key(id)
if redis.call('EXISTS', meta) == 1 and redis.call('HEXISTS', meta, 'ended') == 0 then return 0 end
redis.call('DEL', meta, log_key(id))
return 1
