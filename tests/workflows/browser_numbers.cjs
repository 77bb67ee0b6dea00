// Types numbers into nodes in the real frontend, as a user does, and tells what became of them.
//   node browser_numbers.cjs URL FILE classic|vue '[["SpatialWeave_LoadDepth", "png_scale", "1/256"], ...]'
// An item may also be a saved graph: it is opened and run.
// FILE is a depth PNG in the input folder. Needs playwright-core (found through NODE_PATH) and Chromium (CHROMIUM).
// Prints one JSON line: per number the widget's value, the value in the prompt that was queued and, for Load Depth, its text.
const { chromium } = require('playwright-core')

const [url, file, look, asked] = process.argv.slice(2)
const quiet = ['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']

async function open(page) {
  await page.goto(url, { waitUntil: 'domcontentloaded' })
  await page.waitForFunction(() => window.app?.graph && window.LiteGraph?.registered_node_types?.SpatialWeave_LoadDepth, null, { timeout: 120_000 })
  await page.waitForTimeout(1500)
  await page.keyboard.press('Escape')
  // kept by the server, so set both ways
  await page.evaluate((vue) => window.app.ui.settings.setSettingValueAsync('Comfy.VueNodes.Enabled', vue), look === 'vue')
}

// One node of this type near the middle of the window, Load Depth with core's preview of its text behind it; the widgets for experts shown.
async function place(page, type) {
  await page.evaluate(async ([type, file]) => {
    const { app, LiteGraph } = window
    app.graph.clear()
    const node = LiteGraph.createNode(type)
    node.pos = [100, 120]
    app.graph.add(node)
    if (type === 'SpatialWeave_LoadDepth') {
      const shown = LiteGraph.createNode('PreviewAny')
      shown.pos = [700, 120]
      app.graph.add(shown)
      node.connect(1, shown, 0)
      node.widgets.find((w) => w.name === 'file').value = file
      node.widgets.find((w) => w.name === 'units').value = 'metric'
    }
    node.showAdvanced = true
    node.setSize([420, node.computeSize()[1]])
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [150, 50]
    app.canvas.setDirty(true, true)
    window.typedInto = node
  }, [type, file])
  await page.waitForTimeout(1000)
}

async function typeClassic(page, name, text) {
  const at = await page.evaluate((name) => {
    const { canvas } = window.app, node = window.typedInto
    const widget = node.widgets.find((w) => w.name === name), box = canvas.canvas.getBoundingClientRect()
    const y = node.pos[1] + (widget.last_y ?? widget.y) + 10
    return [box.x + node.pos[0] + node.size[0] / 2 + canvas.ds.offset[0], box.y + y + canvas.ds.offset[1]]
  }, name)
  await page.mouse.dblclick(...at)
  const field = page.locator('.graphdialog input').first()
  await field.waitFor({ timeout: 10_000 })
  await field.fill(text)
  await field.press('Enter')
}

async function typeVue(page, name, text) {
  const field = page.locator(`[data-node-id] [aria-label="${name}"] input`).first()
  await field.waitFor({ timeout: 10_000 })
  await field.locator('..').click() // what lies over the field takes drags, and gives the field to a click
  await field.fill(text)
  await field.press('Tab')
  await page.waitForTimeout(200)
  await field.locator('..').click() // looked at once more and left: what the field shows is read again
  await field.press('Tab')
}

// What was sent, and the text in the preview once the run has ended.
async function queue(page) {
  const answered = page.waitForResponse((one) => one.request().method() === 'POST' && /\/prompt$/.test(new URL(one.url()).pathname))
  await page.evaluate(() => { window.app.queuePrompt(0, 1) })
  const response = await answered
  const { prompt_id: id } = await response.json()
  const said = await page.evaluate(async (id) => {
    for (let tries = 0; tries < 600; tries++) {
      const run = (await (await window.app.api.fetchApi(`/history/${id}`)).json())[id]
      if (run?.status?.completed !== undefined) {
        return Object.values(run.outputs).flatMap((output) => output.text ?? [])[0] ?? JSON.stringify(run.status)
      }
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
    return 'no end within a minute'
  }, id)
  return { prompt: response.request().postDataJSON().prompt, said }
}

async function main() {
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: quiet })
  const page = await browser.newPage({ viewport: { width: 1600, height: 1000 } })
  const seen = []
  try {
    await open(page)
    for (const item of JSON.parse(asked)) {
      if (item.nodes) { // a saved graph: opened and run as it is
        await page.evaluate((graph) => window.app.loadGraphData(graph), item)
        seen.push(await queue(page))
        continue
      }
      const [type, name, text] = item
      await place(page, type)
      await (look === 'vue' ? typeVue : typeClassic)(page, name, text)
      await page.waitForTimeout(300)
      const value = await page.evaluate((name) => window.typedInto.widgets.find((w) => w.name === name).value, name)
      const entry = { type, name, text, value }
      if (type === 'SpatialWeave_LoadDepth') {
        const run = await queue(page)
        const node = Object.values(run.prompt).find((node) => node.class_type === type)
        Object.assign(entry, { queued: node.inputs[name], said: run.said })
      }
      seen.push(entry)
    }
  } catch (error) {
    if (process.env.SCREENSHOT) await page.screenshot({ path: process.env.SCREENSHOT })
    throw error
  } finally {
    await browser.close()
  }
  console.log(JSON.stringify(seen))
}

main().catch((error) => { console.error(error); process.exit(1) })
