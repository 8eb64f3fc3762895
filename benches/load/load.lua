-- One constant request, so that wrk spends nothing on making it; the figures as `name value` lines.
-- Arguments: METHOD CONNECTION [FILE WITH THE BODY]

function init(args)
  wrk.method = args[1]
  wrk.headers["Connection"] = args[2]
  if args[3] then
    local file = assert(io.open(args[3], "rb"))
    wrk.body = file:read("*a")
    wrk.headers["Content-Type"] = "application/json"
    file:close()
  end
end

function done(summary, latency)
  local function say(name, value)
    io.write(string.format("%s %.0f\n", name, value))
  end
  say("requests", summary.requests)
  say("bytes", summary.bytes)
  say("microseconds", summary.duration)
  for _, kind in ipairs({ "connect", "read", "write", "status", "timeout" }) do
    say(kind, summary.errors[kind])
  end
  say("p50", latency:percentile(50))
  say("p99", latency:percentile(99))
  say("p999", latency:percentile(99.9))
end
