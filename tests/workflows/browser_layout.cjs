// Opens graphs in the real frontend and tells how they are drawn, before a run or after one.
//   node browser_layout.cjs URL classic|vue 1366x768 '[{"name": "joint_image_depth", "graph": {...}, "run": true}, ...]'
// The list may also be the name of a file that holds it. Needs playwright-core (found through NODE_PATH) and Chromium (CHROMIUM).
// Prints a JSON line per graph: the zoom at which the whole of it fits the window, how its run ended, the rectangles of its nodes with their
// title bars and of its groups, in the graph's units, and the page's errors. With SCREENSHOTS set, a picture of each in that folder.
const fs = require('fs')
const { chromium } = require('playwright-core')

const [url, look, size, asked] = process.argv.slice(2)
const [width, height] = size.split('x').map(Number)
const quiet = ['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']

async function open(page) {
  await page.goto(url, { waitUntil: 'domcontentloaded' })
  await page.waitForFunction(() => window.app?.graph && window.LiteGraph?.registered_node_types?.SpatialWeave_LoadDepth, null, { timeout: 120_000 })
  await page.waitForTimeout(1500)
  await page.keyboard.press('Escape')
  // kept by the server, so set both ways
  await page.evaluate((vue) => window.app.ui.settings.setSettingValueAsync('Comfy.VueNodes.Enabled', vue), look === 'vue')
}

const run = (page) => page.evaluate(() => new Promise((resolve) => {
  const { api } = window.app
  api.addEventListener('execution_success', () => resolve('success'), { once: true })
  api.addEventListener('execution_error', (event) => resolve(`${event.detail?.node_type}: ${event.detail?.exception_message}`), { once: true })
  setTimeout(() => resolve('no end within 5 minutes'), 300_000)
  window.app.queuePrompt(0, 1).then((sent) => { if (sent === false) resolve('not queued: the graph did not validate') })
}))

const measure = (page) => page.evaluate(() => {
  const { app, LiteGraph } = window
  const { scale, offset } = app.canvas.ds
  const canvas = app.canvas.canvas.getBoundingClientRect(), title = LiteGraph.NODE_TITLE_HEIGHT
  const box = (node) => {
    const element = document.querySelector(`[data-node-id="${node.id}"]`), rect = element?.getBoundingClientRect()
    const drawn = rect?.width
      ? [(rect.x - canvas.x) / scale - offset[0], (rect.y - canvas.y) / scale - offset[1], rect.width / scale, rect.height / scale]
      : [node.pos[0], node.pos[1] - title, node.flags?.collapsed ? node._collapsed_width ?? 80 : node.size[0], (node.flags?.collapsed ? 0 : node.size[1]) + title]
    return { id: node.id, type: node.type, name: node.title, elements: !!rect?.width, box: drawn.map((value) => Math.round(value * 10) / 10) }
  }
  return { zoom: scale, nodes: app.graph._nodes.map(box), groups: app.graph._groups.map((group) => [...group.pos, ...group.size]) }
})

async function main() {
  const list = JSON.parse(asked.startsWith('[') ? asked : fs.readFileSync(asked, 'utf8'))
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: quiet })
  const page = await browser.newPage({ viewport: { width, height } })
  const errors = []
  page.on('pageerror', (error) => errors.push(String(error).slice(0, 200)))
  try {
    await open(page)
    for (const { name, graph, run: asRun } of list) {
      await page.evaluate((graph) => window.app.loadGraphData(graph, true, true, null, { openSource: 'template' }), graph)
      await page.waitForTimeout(500)
      const outcome = asRun ? await run(page) : null
      await page.waitForTimeout(asRun ? 2500 : 500) // results are drawn
      console.log(JSON.stringify({ name, outcome, ...(await measure(page)), errors: errors.splice(0) }))
      if (process.env.SCREENSHOTS) await page.screenshot({ path: `${process.env.SCREENSHOTS}/${name}_${look}_${width}.png`, timeout: 120_000 })
    }
  } finally {
    await browser.close()
  }
}

main().catch((error) => { console.error(error); process.exit(1) })
