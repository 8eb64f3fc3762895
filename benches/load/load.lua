-- A constant request, which costs wrk nothing to build. Prints the results as `name value` lines.
-- Arguments: METHOD CONNECTION [BODY_FILE]

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
  local function print_value(name, value)
    io.write(string.format("%s %.0f\n", name, value))
  end
  print_value("requests", summary.requests)
  print_value("bytes", summary.bytes)
  print_value("microseconds", summary.duration)
  for _, kind in ipairs({ "connect", "read", "write", "status", "timeout" }) do
    print_value(kind, summary.errors[kind])
  end
  print_value("p50", latency:percentile(50))
  print_value("p99", latency:percentile(99))
  print_value("p999", latency:percentile(99.9))
end
