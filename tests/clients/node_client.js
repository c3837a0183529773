// Requests of Node.js: how, and then URL, header, value, again and again.
process.env.NODE_TLS_REJECT_UNAUTHORIZED = "0";
process.removeAllListeners("warning");
const [how, ...rest] = process.argv.slice(2);
const requests = [];
for (let i = 0; i < rest.length; i += 3) requests.push(rest.slice(i, i + 3));

async function https(each) {
  const { Agent, get } = require("https");
  const agent = new Agent({ keepAlive: true });
  await each(([url, name, value]) => new Promise((done, fail) => {
    get(url, { agent, headers: { [name]: value } }, (answer) => {
      answer.resume();
      answer.on("end", done);
    }).on("error", fail);
  }));
  agent.destroy();
}

async function http2() {
  const { connect } = require("http2");
  const sessions = {};
  for (const [url, name, value] of requests) {
    sessions[url] ??= connect(url);
    await new Promise((done, fail) => {
      const request = sessions[url].request({ ":path": "/", [name.toLowerCase()]: value });
      request.resume();
      request.on("end", done).on("error", fail);
    });
  }
  Object.values(sessions).forEach((session) => session.close());
}

async function main() {
  if (how === "https") await https(async (get) => { for (const one of requests) await get(one); });
  if (how === "parallel") await https((get) => Promise.all(requests.map(get)));
  if (how === "http2") await http2();
  if (how === "fetch") {
    for (const [url, name, value] of requests) await (await fetch(url, { headers: { [name]: value } })).text();
  }
}

main().then(() => process.exit(0), (error) => { console.error(error); process.exit(1); });
