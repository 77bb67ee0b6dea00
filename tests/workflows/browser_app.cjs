// Opens the app form of a template, and a subgraph blueprint, in the real frontend, and runs both.
//   node browser_app.cjs URL TEMPLATE BLUEPRINT
// Needs playwright-core (found through NODE_PATH) and Chromium (CHROMIUM). Prints one JSON line: whether app mode came up with its texts and
// images, what the blueprint's node shows, and how both runs ended. With SCREENSHOTS set, pictures in that folder.
const { chromium } = require('playwright-core')

const [url, template, blueprint] = process.argv.slice(2)
const quiet = ['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']
const shoot = (page, name) => process.env.SCREENSHOTS && page.screenshot({ path: `${process.env.SCREENSHOTS}/${name}.png`, timeout: 120_000 })

const ready = (page) => page.waitForFunction(() => window.app?.graph && window.LiteGraph?.registered_node_types?.SpatialWeave_LoadDepth, null, { timeout: 120_000 })

const run = (page) => page.evaluate(() => new Promise((resolve) => {
  const { app } = window, { api } = app
  for (const node of app.graph._nodes) for (const widget of node.widgets ?? []) if (widget.name === 'steps') widget.value = 3
  for (const graph of app.graph.subgraphs?.values() ?? []) for (const node of graph.nodes) for (const widget of node.widgets ?? []) if (widget.name === 'steps') widget.value = 3
  api.addEventListener('execution_success', () => resolve('success'), { once: true })
  api.addEventListener('execution_error', (event) => resolve(`${event.detail?.node_type}: ${event.detail?.exception_message}`), { once: true })
  setTimeout(() => resolve('no end within 3 minutes'), 180_000)
  app.queuePrompt(0, 1).then((sent) => { if (sent === false) resolve('not queued: the graph did not validate') })
}))

async function openApp(page) {
  await page.goto(`${url}/?template=${template}&source=spatialweave`, { waitUntil: 'domcontentloaded' })
  await ready(page)
  await page.waitForFunction(() => window.app.graph._nodes.some((node) => node.type === 'SpatialWeave_LoadModalityForcing'), null, { timeout: 60_000 })
  await page.waitForTimeout(3000)
  const canvas = await page.evaluate(() => {
    const middle = document.elementFromPoint(window.innerWidth / 2, window.innerHeight / 2)
    return middle?.tagName === 'CANVAS'
  })
  const outcome = await run(page)
  await page.waitForTimeout(3000)
  const values = await page.evaluate(() => [...document.querySelectorAll('textarea, input')].filter((field) => field.checkVisibility()).map((field) => field.value))
  const images = await page.evaluate(() => [...document.images].filter((image) => image.checkVisibility() && image.naturalWidth > 64 && image.src.includes('/view')).length)
  await shoot(page, 'app')
  return { values, canvas, outcome, images }
}

async function openBlueprint(page) {
  await page.goto(url, { waitUntil: 'domcontentloaded' })
  await ready(page)
  await page.waitForTimeout(1500)
  await page.keyboard.press('Escape')
  const listed = await page.evaluate(async (name) => {
    const all = await (await window.app.api.fetchApi('/global_subgraphs')).json()
    const [id] = Object.entries(all).find(([, entry]) => entry.name === name && entry.source === 'custom_node') ?? []
    if (!id) return null
    const { data } = await (await window.app.api.fetchApi(`/global_subgraphs/${id}`)).json()
    await window.app.loadGraphData(JSON.parse(data))
    const node = window.app.graph._nodes[0], shown = window.LiteGraph.createNode('PreviewImage'), depth = window.LiteGraph.createNode('SpatialWeave_PreviewDepth')
    shown.pos = [700, 100]
    depth.pos = [700, 500]
    window.app.graph.add(shown)
    window.app.graph.add(depth)
    node.connect(0, shown, 0)
    node.connect(1, depth, 0)
    return { title: node.title, widgets: node.widgets.map((widget) => [widget.name, widget.value]), outputs: node.outputs.map((output) => output.type) }
  }, blueprint)
  if (!listed) return null
  const outcome = await run(page)
  await page.waitForTimeout(2000)
  await shoot(page, 'blueprint')
  return { ...listed, outcome }
}

async function main() {
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: quiet })
  try {
    const page = await browser.newPage({ viewport: { width: 1366, height: 768 } }), errors = []
    page.on('pageerror', (error) => errors.push(String(error).slice(0, 200)))
    const subgraph = await openBlueprint(page)
    console.log(JSON.stringify({ app: await openApp(page), subgraph, errors }))
  } finally {
    await browser.close()
  }
}

main().catch((error) => { console.error(error); process.exit(1) })
