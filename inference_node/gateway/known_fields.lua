-- Envoy's transcoder drops the fields of a JSON body that it does not know: a misspelt `adapter` would
-- have the base model answer. Here such a body is refused, by the field's name. Whether it is JSON at all
-- is for the transcoder to say, but what only some readers take for JSON is refused too.

-- The request of each method, and of each message the fields in both spellings with the message that each
-- holds. What is no message, and the values of maps, may hold anything.
local REQUESTS = $requests
local MESSAGES = $messages
local ANYTHING = ""
local DEEPEST = 64
local NO_JSON = "names of fields, and text, stand in double quotes"

-- Where the string ends whose opening quote is at `at`, or nil.
local function closing_quote(text, at)
  repeat
    at = text:find('["\\]', at + 1)
    local escapes = at and text:sub(at, at) == "\\"
    if escapes then at = at + 1 end
  until not escapes
  return at
end

-- What is wrong with the JSON of a `message`, or nil.
local function problem_of(text, message)
  local objects = {}  -- of each open brace or bracket, the message it is, or "[" and the message it holds
  local holds, at = message, 1  -- holds: what message the next value is
  local function key_after(place)
    local open, close = text:match('^[ \t\r\n]*()(["}]?)', place)
    if close == "}" then return open - 1 end
    local last = close == '"' and closing_quote(text, open)
    local colon = last and text:match("^[ \t\r\n]*:()", last + 1)
    if not colon then return nil, NO_JSON end
    local name, fields = text:sub(open + 1, last - 1), MESSAGES[objects[#objects]]
    holds = fields and fields[name] or ANYTHING
    if fields and not fields[name] then
      local shown = name:sub(1, 64):gsub("[^%w_.-]", "?")
      return nil, objects[#objects]:match("[^.]*$$") .. " has no field '" .. shown .. "'"
    end
    return colon - 1
  end
  while true do
    at = text:find("[\"'{}%[%],]", at)
    if not at then return nil end
    local found, problem = text:sub(at, at), nil
    if found == '"' then
      at = closing_quote(text, at)
    elseif found == "'" then
      return NO_JSON
    elseif found == "[" then
      objects[#objects + 1] = "[" .. holds
    elseif found == "{" then
      objects[#objects + 1] = holds
      at, problem = key_after(at + 1)
    elseif found == "," then
      local inside = objects[#objects] or "["
      if inside:sub(1, 1) == "[" then holds = inside:sub(2) else at, problem = key_after(at + 1) end
    else
      objects[#objects] = nil
    end
    if problem then return problem end
    if #objects > DEEPEST then return "is nested too deeply" end
    if not at then return NO_JSON end
    at = at + 1
  end
end

local function refusal(problem)
  return '{"code":3,"message":"body: ' .. problem .. '","details":[{"@type":'
    .. '"type.googleapis.com/google.rpc.ErrorInfo","reason":"INVALID_REQUEST",'
    .. '"domain":"lorapool.dev","metadata":{"field":"body"}}]}'
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local path, kind = headers:get(":path"), headers:get("content-type") or ""
  local message = REQUESTS[path:match("^[^?]*")]
  if not message or kind:find("^application/grpc") then return end
  local body = handle:body()
  local problem = body and problem_of(body:getBytes(0, body:length()), message)
  if problem then
    handle:respond({[":status"] = "400", ["content-type"] = "application/json"}, refusal(problem))
  end
end
