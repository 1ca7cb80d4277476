// Drives one Chromium for pytest: a request is a line of JSON on stdin, its answer a line on stdout, in order.
//
//   {"do": "open", "url": ..., "width", "height", "dark", "bypassCSP", "touch"}  -> the page's number
//   {"do": "call", "page": 1, "method": "keyboard.press", "args": ["1"]}         -> what Playwright's method returns
//   {"do": "evaluate", "page": 1, "code": "(x) => x + 1", "arg": 1}              -> its value
//   {"do": "axe", "page": 1}                                                     -> one line for each violation
//   {"do": "seen", "page": 1}                                                    -> {"problems": [...], "requests": [...]}
//   {"do": "close", "page": 1}
//
// An answer is {"value": ...} or {"error": "..."}.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const [executablePath] = process.argv.slice(2);
// As root Chromium runs without its sandbox only; /dev/shm of a container has 64 MB, and a tab that fills it crashes.
const args = ["--disable-dev-shm-usage", ...(process.getuid() === 0 ? ["--no-sandbox"] : [])];
const browser = await chromium.launch({ executablePath, args });
const pages = new Map();
let count = 0;

const commands = {
  async open({ url, width, height, dark, bypassCSP, touch }) {
    const context = await browser.newContext({
      viewport: { width, height },
      colorScheme: dark ? "dark" : "light",
      reducedMotion: "reduce",
      bypassCSP,
      hasTouch: touch,
      isMobile: touch,
    });
    context.setDefaultTimeout(10_000);
    const page = await context.newPage();
    const seen = { problems: [], requests: [] };
    page.on("console", (message) => {
      if (["error", "warning"].includes(message.type())) seen.problems.push(`${message.type()}: ${message.text()}`);
    });
    page.on("pageerror", (error) => seen.problems.push(`uncaught: ${error.message}`));
    page.on("request", (request) => seen.requests.push(request.url()));
    pages.set(++count, { page, seen });
    await page.goto(url);
    return count;
  },
  async call({ page, method, args }) {
    const path = method.split(".");
    const name = path.pop();
    const owner = path.reduce((object, key) => object[key], pages.get(page).page);
    const value = await owner[name](...args);
    // An element, a response or a picture has no form in JSON.
    return ["string", "number", "boolean"].includes(typeof value) ? value : null;
  },
  async evaluate({ page, code, arg }) {
    return (await pages.get(page).page.evaluate(`(${code})(${JSON.stringify(arg)})`)) ?? null;
  },
  async axe({ page }) {
    const { page: tab } = pages.get(page);
    await tab.evaluate(AXE);
    const { violations } = await tab.evaluate("axe.run(document, { resultTypes: ['violations'] })");
    return violations.flatMap(({ id, help, nodes }) => nodes.map(({ html }) => `${id}: ${help}: ${html.slice(0, 200)}`));
  },
  async seen({ page }) {
    return pages.get(page).seen;
  },
  async close({ page }) {
    const { page: tab } = pages.get(page);
    pages.delete(page);
    await tab.context().close();
  },
};

console.log(JSON.stringify({ value: browser.version() }));
for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  let answer;
  try {
    answer = { value: (await commands[request.do](request)) ?? null };
  } catch (error) {
    answer = { error: String(error.message) };
  }
  console.log(JSON.stringify(answer));
}
await browser.close();
