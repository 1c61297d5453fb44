-- Holds requests while no gateway is up. HAProxy loads this with one argument: for how many seconds at most.
-- haproxy_config.py tells where it stands.

local wait_s = tonumber((...))
local POLL_MS = 100

-- Returns when `backend` has a server that is up; when the time is over; and when this process gives way to another,
-- which may know gateways that this one does not: txn.gives_way is set then, and the time goes along with the request.
core.register_action("await_gateway", { "http-req" }, function(txn, backend)
  local until_s = tonumber(txn.f:req_hdr("x-nfold-waits-until")) or core.now().sec + wait_s
  while txn.f:nbsrv(backend) == 0 and core.now().sec < until_s do
    core.msleep(POLL_MS) -- also before it gives way: should the request come back here, it does not spin
    if txn.f:stopping() == 1 then
      txn.http:req_set_header("x-nfold-waits-until", tostring(until_s))
      txn:set_var("txn.gives_way", true)
      return
    end
  end
end, 1)
