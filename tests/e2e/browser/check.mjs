// Drives the operator's page in Chromium. Usage: node check.mjs SCENARIO '{"url": …}'
//
// Each scenario fails by an exception. Whatever it does, a message on the console, an exception in the page, or a
// violation of the content security policy (which Chromium reports on the console) is a failure, too.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { chromium } from 'playwright-core';

const ARGUMENTS = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage',
];
const WIDE = { width: 1280, height: 900 };
const NARROW = { width: 360, height: 740 };
const PATIENCE = 30_000;
const [, , scenario, json] = process.argv;
const given = JSON.parse(json);

/** Opens a browser with a profile of its own, does something in it, and closes it. */
async function browse(options, work) {
  const profile = await mkdtemp(join(tmpdir(), 'workos-sync-browser-'));
  const complaints = [];
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    headless: true,
    args: ARGUMENTS,
    viewport: WIDE,
    permissions: options.javaScriptEnabled === false ? [] : ['clipboard-read', 'clipboard-write'],
    ...options,
  });
  try {
    context.setDefaultTimeout(PATIENCE);
    const listen = (page) => {
      page.on('console', (message) => {
        // What the server refuses on purpose is on the console as well.
        const refusal = /the server responded with a status of (401|403|404)/.test(message.text());
        if (!(refusal && options.refusals)) complaints.push(`${message.type()}: ${message.text()} (${page.url()})`);
      });
      page.on('pageerror', (error) => complaints.push(`${error} (${page.url()})`));
      page.on('dialog', (dialog) => {
        complaints.push(`a dialog: ${dialog.message()}`);
        dialog.dismiss();
      });
    };
    context.on('page', listen);
    const page = context.pages()[0];
    listen(page);
    await work(page, context);
  } finally {
    await context.close();
    await rm(profile, { recursive: true, force: true });
  }
  assert.deepEqual(complaints, []);
}

const at = (path) => new URL(path, given.url).href;
const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

/** Looks for what WCAG 2.2 AA forbids, and for what sticks out at the side. */
async function inspect(page) {
  // Past the content security policy: it is the test's own script, and no part of the page.
  const { violations } = await page.evaluate(`${axe};axe.run(document, {
    runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'],
  })`);
  const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => `${node.html} ${node.failureSummary}`).join('; ')}`);
  assert.deepEqual(found, [], page.url());
  const widths = await page.evaluate(() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]);
  assert.ok(widths[0] <= widths[1], `${page.url()} is ${widths[0]} wide, on ${widths[1]}`);
}

/** Where the focus is, in words. */
const focused = (page) =>
  page.evaluate(() => {
    const { activeElement: element } = document;
    return `${element.localName} ${element.getAttribute('aria-label') ?? element.textContent.trim()}`.trim();
  });

/** Presses Tab until the focus is on an element of this text. */
async function tabTo(page, text, key = 'Tab') {
  for (let presses = 0; presses < 80; presses += 1) {
    await page.keyboard.press(key);
    if ((await focused(page)) === text) return;
  }
  assert.fail(`Tab doesn't lead to ${text}`);
}

const pages = () => [
  '/', '/events', '/events?status=dead', '/events?type=nothing', `/events/${given.dead}`, `/events/${given.dead}?payload=yes`,
  `/events/${given.processed}`, '/causes', '/organizations', `/organizations/${given.organization}`, '/runs', '/actions',
  `/retry?cause=${encodeURIComponent(given.cause)}`, `/discard?cause=${encodeURIComponent(given.cause)}`, '/pause',
];

const scenarios = {
  /** Every page, dark and light, wide and narrow: accessible, and nothing sticks out. */
  async looks() {
    for (const colorScheme of ['light', 'dark']) {
      await browse({ colorScheme }, async (page) => {
        for (const path of pages()) {
          const answer = await page.goto(at(path));
          assert.equal(answer.status(), 200, path);
          for (const viewport of [WIDE, NARROW]) {
            await page.setViewportSize(viewport);
            await inspect(page);
          }
        }
        // The dialog, which only the script makes.
        await page.goto(at('/causes'));
        await page.click('a[data-ask]');
        await page.waitForSelector('dialog[open]');
        await inspect(page);
      });
    }
  },

  /** Filter, open, retry all of a cause, discard with a reason, pause, resume. */
  async flows() {
    await browse({}, async (page) => {
      await page.goto(at('/events'));
      await page.selectOption('select[name=status]', 'dead');
      await page.click('button:has-text("Filter")');
      await page.waitForURL(/status=dead/);
      assert.deepEqual(new Set(await page.locator('tbody .status').allTextContents()), new Set(['dead']));
      await page.click(`a[href="/events/${given.dead}"]`);
      await page.waitForSelector('h1');
      assert.match(await page.textContent('main'), new RegExp(given.dead));
      // Hidden until asked for.
      assert.equal(await page.locator('pre').count(), 0);
      await page.click('text=Show the payload');
      assert.match(await page.textContent('pre'), /"event"/);
      await page.click('button[data-copy]');
      assert.equal(await page.evaluate(() => navigator.clipboard.readText()), given.dead);

      // Retry all of a cause: they fail again, and are told from those that were discarded.
      await page.goto(at('/causes'));
      const row = page.locator('tr', { hasText: given.cause });
      const count = Number.parseInt(await row.locator('td.number').first().textContent(), 10);
      assert.equal(count, given.count);
      await row.locator(`a:has-text("Retry ${count}…")`).click();
      await page.waitForSelector('dialog[open]');
      await page.click(`dialog button:has-text("Retry ${count} events")`);
      await page.waitForSelector('.notice');
      assert.match(await page.textContent('.notice'), new RegExp(`${count} events`));

      // Discarding asks for a reason.
      await page.goto(at('/causes'));
      await page.locator('tr', { hasText: given.other }).locator('a:has-text("Discard")').click();
      await page.waitForSelector('dialog[open]');
      await page.click('dialog button:has-text("Discard 1 event")');
      assert.ok(await page.locator('dialog[open]').count(), 'a reason is asked for');
      await page.fill('dialog [name=reason]', 'a test <b>of</b> the page');
      await page.click('dialog button:has-text("Discard 1 event")');
      await page.waitForSelector('.notice');
      await page.goto(at('/actions'));
      assert.match(await page.textContent('tbody'), /a test <b>of<\/b> the page/);

      await page.goto(at('/'));
      await page.click('text=Pause…');
      await page.fill('dialog [name=reason]', 'a look at the page');
      await page.click('dialog button:has-text("Pause")');
      await page.waitForSelector('.sentence:has-text("Paused")');
      assert.match(await page.textContent('.sentence'), /a look at the page/);
      await page.click('text=Resume…');
      await page.click('dialog button:has-text("Resume")');
      await page.waitForSelector('.sentence:not(:has-text("Paused"))');
    });
  },

  /** The same without script: each question is a page. */
  async scriptless() {
    await browse({ javaScriptEnabled: false }, async (page) => {
      await page.goto(at('/events?status=dead'));
      assert.equal(await page.locator('button:visible:has-text("Pause refresh")').count(), 0);
      assert.equal(await page.locator('button[data-copy]:visible').count(), 0);
      await page.locator('input[name=id]').last().check();
      await page.click('button:has-text("Retry selected…")');
      await page.click('button:has-text("Retry 1 event")');
      assert.match(await page.textContent('.notice'), /1 event/);
      await page.goto(at('/causes'));
      await page.locator('tr', { hasText: given.other }).locator('a:has-text("Discard")').click();
      await page.fill('[name=reason]', 'without script');
      await page.click('button:has-text("Discard 1 event")');
      assert.match(await page.textContent('.notice'), /1 event/);
      await page.goto(at('/'));
      await page.click('text=Pause…');
      await page.click('a:has-text("Cancel")');
      await page.click('text=Pause…');
      await page.click('button:has-text("Pause")');
      assert.match(await page.textContent('.sentence'), /Paused/);
      await page.click('text=Resume…');
      await page.click('button:has-text("Resume")');
      assert.doesNotMatch(await page.textContent('.sentence'), /Paused/);
    });
  },

  /** With the keyboard alone. */
  async keyboard() {
    await browse({}, async (page) => {
      await page.goto(at('/'));
      await page.keyboard.press('Tab');
      assert.equal(await focused(page), 'a Skip to the content');
      await page.keyboard.press('Enter');
      await tabTo(page, 'a Pause…');
      await page.goto(at('/'));
      await tabTo(page, 'a Causes');
      await page.keyboard.press('Enter');
      await page.waitForURL(/causes/);
      const retry = `a Retry ${given.count}…`;
      await tabTo(page, retry);
      const ring = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
      assert.equal(ring, 'solid', 'the focus is seen');
      await page.keyboard.press('Enter');
      await page.waitForSelector('dialog[open]');
      // The focus is in the dialog, stays there, and comes back.
      assert.ok(await page.evaluate(() => document.querySelector('dialog').contains(document.activeElement)));
      await page.keyboard.press('Escape');
      await page.waitForSelector('dialog', { state: 'detached' });
      assert.equal(await focused(page), retry);
      await page.keyboard.press('Enter');
      await page.waitForSelector('dialog[open]');
      await tabTo(page, `button Retry ${given.count} events`);
      await page.keyboard.press('Enter');
      await page.waitForSelector('.notice');
    });
  },

  /** New events appear by themselves; focus, selection and what was typed stay; hidden or paused, nothing is asked. */
  async refresh() {
    await browse({}, async (page) => {
      await page.goto(at('/events?limit=500'));
      const rows = () => page.locator('tbody tr').count();
      const before = await rows();
      await page.fill('input[name=organization]', 'half-typed');
      await page.locator('tbody tr input[name=id]').first().check();
      await page.locator('tbody tr a.id').first().focus();
      const href = await page.evaluate(() => document.activeElement.getAttribute('href'));
      await page.evaluate(() => getSelection().selectAllChildren(document.querySelector('tbody tr:last-child td.said')));
      const selected = await page.evaluate(() => getSelection().toString());
      assert.notEqual(selected, '');
      await page.waitForFunction((count) => document.querySelectorAll('tbody tr').length > count, before);
      assert.equal(await page.evaluate(() => document.activeElement.getAttribute('href')), href);
      assert.equal(await page.evaluate(() => getSelection().toString()), selected);
      assert.equal(await page.inputValue('input[name=organization]'), 'half-typed');
      assert.equal(await page.locator('tbody input:checked').count(), 1);

      let asked = 0;
      page.on('request', () => (asked += 1));
      await page.click('text=Pause refresh');
      asked = 0;
      await page.waitForTimeout(6_000);
      assert.equal(asked, 0, 'paused');
      await page.evaluate(() => Object.defineProperty(document, 'hidden', { value: true, configurable: true }));
      await page.click('text=Resume refresh');
      await page.waitForTimeout(6_000);
      assert.equal(asked, 0, 'hidden');
      await page.evaluate(() => {
        delete document.hidden;
        document.dispatchEvent(new Event('visibilitychange'));
      });
      await page.waitForFunction((count) => document.querySelectorAll('tbody tr').length > count, await rows());
    });
  },

  /** The token opens a session; a link from elsewhere comes into it; signing out ends it. */
  async login() {
    const other = createServer((_, answer) => {
      answer.setHeader('content-type', 'text/html');
      answer.end(`<link rel="icon" href="data:,"><a href="${at('/events?status=dead')}">look</a>
        <form method="post" action="${at('/resume')}"><button>resume</button></form>`);
    });
    await new Promise((listening) => other.listen(0, '127.0.0.1', listening));
    const elsewhere = `http://localhost:${other.address().port}/`;
    try {
      await browse({ refusals: true }, async (page, context) => {
        const answer = await page.goto(at('/causes'));
        assert.equal(answer.status(), 401);
        await inspect(page);
        await page.fill('[name=token]', 'wrong');
        await page.click('button:has-text("Sign in")');
        await page.waitForSelector('[role=alert]');
        await inspect(page);
        await page.fill('[name=token]', given.token);
        await page.click('button:has-text("Sign in")');
        await page.waitForURL(/\/causes$/);
        const [cookie] = await context.cookies();
        assert.equal(cookie.httpOnly, true);
        assert.equal(cookie.sameSite, 'Strict');
        assert.equal(await page.evaluate(() => document.cookie), '');

        await page.goto(elsewhere);
        await page.click('a');
        await page.waitForSelector('tbody .status');
        await page.goto(elsewhere);
        await page.click('button');
        await page.waitForSelector('[name=token]');

        await page.goto(at('/'));
        await page.click('button:has-text("Sign out")');
        await page.waitForSelector('[name=token]');
        assert.deepEqual(await context.cookies(), []);
        assert.equal((await page.goto(at('/'))).status(), 401);
      });
    } finally {
      other.close();
    }
  },
};

await scenarios[scenario]();
