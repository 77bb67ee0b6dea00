// Opens a web page in Chromium: node browser_page.cjs FILE_OR_URL 1366x768 [PICTURE.png]
// Prints one JSON line: the images that did not load, how far the page is wider than the window, failed requests, errors, headings.
const { chromium } = require('playwright-core')
const { pathToFileURL } = require('node:url')

const [page, size, picture] = process.argv.slice(2)
const [width, height] = size.split('x').map(Number)

async function main() {
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox', '--disable-gpu'] })
  try {
    const tab = await browser.newPage({ viewport: { width, height } })
    const errors = [], failed = []
    tab.on('pageerror', (error) => errors.push(String(error)))
    tab.on('requestfailed', (request) => failed.push(request.url()))
    await tab.goto(page.includes('://') ? page : pathToFileURL(page).href, { waitUntil: 'load' })
    const seen = await tab.evaluate(async () => {
      const images = [...document.images]
      for (const image of images) image.loading = 'eager'
      await Promise.all(images.map((image) => image.decode().catch(() => {})))
      return {
        images: images.map((image) => [image.getAttribute('src'), image.naturalWidth, image.getBoundingClientRect().width]),
        broken: images.filter((image) => !image.naturalWidth || !image.alt).map((image) => image.src),
        wider: document.documentElement.scrollWidth - window.innerWidth,
        headings: [...document.querySelectorAll('article h2')].map((heading) => heading.textContent),
        text: document.body.innerText,
      }
    })
    if (picture) await tab.screenshot({ path: picture, fullPage: true })
    console.log(JSON.stringify({ ...seen, errors, failed }))
  } finally {
    await browser.close()
  }
}

main().catch((error) => { console.error(error); process.exit(1) })
