"""The pages of a report in a real browser, Debian's Chromium: run with `-m browser`.

Each page opens from the disk without a word on the console and without a request, fits a phone, and can be read in
light and in dark.
"""

import collections
import json
import shutil

import pytest
from fixtures.reports import HOSTILE, comparison_of, page_of, subject_of

pytestmark = pytest.mark.browser

PHONE, DESKTOP = 360, 1100  # pixels
CIFAR = tuple('airplane automobile bird cat deer dog frog horse ship truck'.split())
PAGES = {
    'hostile': lambda: page_of(subject_of(HOSTILE))[1],
    'ten classes': lambda: page_of(subject_of(CIFAR, num_images=100), 'zh')[1],
    'long names': lambda: page_of(subject_of(['W' * 99, 'two words ' * 30, 'c'], name='/a' * 90))[1],
    'a thousand classes': lambda: page_of(subject_of([f'class number {i}' for i in range(1000)], num_images=200))[1],
    'a comparison': lambda: comparison_of([subject_of('abc', name=name) for name in ('one', '<b>', 'w' * 90)], 'zh')[1],
}
# The contrast (WCAG 2.2, 1.4.3) of each text with what is behind it, and of each line of a figure with the page.
CONTRASTS = """
const parse = text => text.match(/[\\d.]+/g).map(Number);
const over = (top, below) => [0, 1, 2].map(i => top[i] * (top[3] ?? 1) + below[i] * (1 - (top[3] ?? 1)));
const light = c => c.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
const ratio = (a, b) => (Math.max(light(a), light(b)) + .05) / (Math.min(light(a), light(b)) + .05);
const behind = element => {
    if (!element) return [255, 255, 255];
    const style = getComputedStyle(element), below = behind(element.parentElement);
    const tint = style.backgroundImage.match(/rgba?\\([^)]*\\)/);
    const color = over(parse(style.backgroundColor), below);
    return tint ? over(parse(tint[0]), color) : color;
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
    if (!text || element.closest('style, title')) continue;
    const style = getComputedStyle(element), color = element.closest('svg') ? style.fill : style.color;
    found.push([text.slice(0, 40), ratio(parse(color).slice(0, 3), behind(element)), 4.5]);
}
for (const line of document.querySelectorAll('svg path[style*="stroke: #"]')) {
    const stroke = getComputedStyle(line).stroke;
    found.push(['line ' + stroke, ratio(parse(stroke).slice(0, 3), behind(line)), 3]);
}
return found;
"""


@pytest.fixture(scope='module')
def browser():
    """A Chromium without a window, whose console and requests are recorded."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which('chromium')
    for flag in ('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'):
        options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which('chromedriver')))
    yield driver
    driver.quit()


@pytest.fixture(scope='module', params=PAGES)
def page(request, tmp_path_factory):
    """The address of a page on the disk."""
    path = tmp_path_factory.mktemp('page') / 'report.html'
    path.write_text(PAGES[request.param](), encoding='utf-8')
    return path.as_uri()


def show(browser, page, width=DESKTOP, mode='light'):
    """Open a page in a window of this width; return the addresses that it requested."""
    metrics = {'width': width, 'height': 800, 'deviceScaleFactor': 1, 'mobile': width < 500}
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', metrics)
    scheme = {'name': 'prefers-color-scheme', 'value': mode}
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': [scheme]})
    browser.get_log('performance')
    browser.get_log('browser')
    browser.get(page)
    events = [json.loads(entry['message'])['message'] for entry in browser.get_log('performance')]
    sent = [event['params'] for event in events if event['method'] == 'Network.requestWillBeSent']
    return [event['request']['url'] for event in sent]


def test_it_opens_without_a_word_and_without_a_request(browser, page):
    requested = show(browser, page)
    assert page in requested and [url for url in requested if url != page and not url.startswith('data:')] == []
    assert browser.get_log('browser') == []
    assert browser.execute_script('return document.scripts.length') == 0


def test_the_test_sees_requests_and_the_console(browser, tmp_path):
    path = tmp_path / 'page.html'
    path.write_text('<img src="http://127.0.0.1:9/x.png"><script>console.error("loud")</script>')
    assert 'http://127.0.0.1:9/x.png' in show(browser, path.as_uri())
    assert any('loud' in entry['message'] for entry in browser.get_log('browser'))


def test_all_images_are_there_and_no_name_comes_twice(browser, page):
    show(browser, page)
    images = 'return [...document.images].map(image => image.complete && image.naturalWidth > 0 && image.alt !== "")'
    shown = browser.execute_script(images)
    assert all(shown) and (len(shown) >= 5 or 'comparison' in browser.title or '比较' in browser.title)
    ids = browser.execute_script('return [...document.querySelectorAll("[id]")].map(element => element.id)')
    assert [name for name, count in collections.Counter(ids).items() if count > 1] == []
    links = 'return [...document.querySelectorAll("nav a")].map(link => link.hash.slice(1))'
    assert set(browser.execute_script(links)) <= set(ids)


@pytest.mark.parametrize('width', [PHONE, DESKTOP])
def test_it_is_as_wide_as_the_window(browser, page, width):
    show(browser, page, width)
    assert browser.execute_script('return document.documentElement.scrollWidth') <= width
    sizes = browser.execute_script(
        'return [...document.querySelectorAll("svg text")].map(text => text.getBoundingClientRect().height)'
    )
    assert sizes and min(sizes) > 8  # pixels: its numbers can be read


@pytest.mark.parametrize('width', [PHONE, 700, DESKTOP])
def test_no_result_stands_alone_in_a_row(browser, page, width):
    show(browser, page, width)
    boxes = 'return [...document.querySelectorAll("dl.facts div")].map(tile => tile.getBoundingClientRect().toJSON())'
    tiles = browser.execute_script(boxes)
    rows = collections.Counter(tile['top'] for tile in tiles)
    assert all(rows[tile['top']] > 1 or tile['width'] > width / 2 for tile in tiles)
    assert tiles or 'comparison' in browser.title.lower() or '比较' in browser.title


@pytest.mark.parametrize('mode', ['light', 'dark'])
def test_every_text_and_line_stands_out(browser, page, mode):
    show(browser, page, DESKTOP, mode)
    browser.execute_script('document.querySelectorAll("details").forEach(part => part.open = true)')
    ground = browser.execute_script('return getComputedStyle(document.body).backgroundColor')
    assert (ground == 'rgb(255, 255, 255)') == (mode == 'light')
    found = browser.execute_script(CONTRASTS)
    assert len(found) > 40 and {row[0][:4] for row in found} >= {'line'}
    assert [row for row in found if row[1] < row[2]] == []
