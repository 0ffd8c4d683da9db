"""The page of ``pyro-ext rate`` in a real browser: what a person does there ends in the file."""

import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from pyro_ext.ratings import add_ratings, rating_page, read_ratings

pytestmark = pytest.mark.slow


class Person:
    """Somebody who rates the images of a folder."""

    def __init__(self, browser, folder, **options):
        self.browser, self.folder, self.options = browser, folder, options
        self.downloads = folder / "downloads"
        self.downloads.mkdir()
        behavior = {"behavior": "allow", "downloadPath": str(self.downloads)}
        browser.execute_cdp_cmd("Browser.setDownloadBehavior", behavior)
        self.open()

    def open(self):
        path = self.folder / "rate.html"
        path.write_text(rating_page(self.folder, **self.options), "utf-8")
        self.browser.get(path.as_uri())

    def element(self, name):
        return self.browser.find_element(By.ID, name)

    def text(self, name):
        return self.element(name).text

    def wait(self, condition):
        return WebDriverWait(self.browser, 120, 0.02).until(lambda _: condition())

    def see(self, words, name="said"):
        self.wait(lambda: words in self.text(name))

    def shown(self):
        """Names of the images, once they are loaded: before that no key answers."""
        images = "return [...document.querySelectorAll('main img')]"
        self.wait(lambda: self.browser.execute_script(images + ".every((image) => image.complete)"))
        return self.browser.execute_script(images + ".map((image) => image.alt)")

    def press(self, key):
        self.browser.find_element(By.TAG_NAME, "body").send_keys(key)

    def click(self, name):
        self.wait(self.element(name).is_enabled)
        self.element(name).click()

    def rate(self, how, done):
        """Answer by a key or a click, and wait until so many are done; returns what was shown."""
        names = self.shown()
        self.wait(self.element("yes" if self.element("yes").is_displayed() else "save").is_enabled)
        (self.press if len(how) == 1 else self.click)(how)
        self.see(f"{done} of ", "count")
        return names

    def saved(self):
        """Answers that the page saves now."""
        path = self.downloads / "ratings.jsonl"
        path.unlink(missing_ok=True)
        self.click("download")
        self.wait(path.exists)
        return read_ratings(path)


@pytest.fixture
def person(browser, tmp_path):
    def make(names, **options):
        for i, name in enumerate(names):
            Image.new("L", (8, 8), 20 * i).save(tmp_path / name, "png")
        return Person(browser, tmp_path, **options)

    yield make
    browser.get("about:blank")
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


NAMES = [f"{i}.png" for i in range(8)]


def test_labels_by_clicks_and_keys_over_a_reload(person):
    someone = person(NAMES, concept="seven <b>")
    someone.see("Does this image show “seven <b>”?", "question")
    assert not someone.element("download").is_enabled()
    wanted = {}
    for done, (how, label) in enumerate({"yes": True, "n": False, "y": True, "no": False}.items()):
        (name,) = someone.rate(how, done + 1)
        wanted[name] = label
    assert someone.saved().labels == wanted
    (skipped,) = someone.rate("s", 5)
    someone.see("1 of them skipped", "count")
    assert someone.saved().skipped == [skipped]

    someone.press("u")
    someone.see(f"Taken back: {skipped}")
    assert someone.shown() == [skipped]
    someone.click("undo")
    someone.see(f"Taken back: {name}")
    del wanted[name]
    assert someone.saved().labels == wanted

    someone.browser.refresh()
    assert someone.shown() == [name] and "3 of 8" in someone.text("count")
    wanted |= {someone.rate("y", done)[0]: True for done in (4, 5)}
    someone.saved()
    assert add_ratings(someone.folder, someone.downloads / "ratings.jsonl").labels == wanted
    someone.open()  # a new page, of what is left
    wanted |= {someone.rate("n", done)[0]: False for done in (1, 2, 3)}
    someone.see("All images are rated", "question")
    assert not someone.element("yes").is_displayed() and someone.element("undo").is_enabled()
    someone.saved()
    found = add_ratings(someone.folder, someone.downloads / "ratings.jsonl")
    assert found.labels == wanted and len(wanted) == 8 and found.concept == "seven <b>"


def test_rankings_by_clicks_and_keys(person):
    someone = person(NAMES, concept="old", rank=3)
    names = someone.shown()
    tiles = someone.browser.find_elements(By.CSS_SELECTOR, ".group button")
    for i in (2, 0):
        tiles[i].click()
    assert [tile.find_element(By.CLASS_NAME, "order").text for tile in tiles] == ["2", "", "1"]
    assert tiles[2].get_attribute("aria-label") == f"{names[2]}, number 1 of 3"
    assert not someone.element("save").is_enabled()
    someone.press("c")  # takes it out again
    assert [tile.get_attribute("aria-pressed") for tile in tiles] == ["true", "false", "false"]
    someone.press("u")  # the last choice
    for key in "bc":
        someone.press(key)
    tiles[0].click()
    tiles[0].send_keys(Keys.ENTER)  # takes the order, and not the image out of it
    someone.see("3 of 8", "count")
    wanted = [[names[1], names[2], names[0]]]
    assert someone.saved().rankings == wanted

    for done in (6, 8):
        names = someone.shown()
        for key in "abc":
            someone.press(key)
        assert someone.rate("save", done) == names
        wanted.append(names)
    assert set(wanted[2]) & set(wanted[0])  # the last two have company
    someone.see("All images are rated", "question")
    assert someone.saved().rankings == wanted
    someone.press("u")
    someone.see("6 of 8", "count")
    assert someone.saved().rankings == wanted[:2] and someone.shown() == names


def test_strange_names_and_images_that_cannot_be_shown(person):
    strange = ["<img src=x onerror=alert(1)>.png", "a 'b' \"c\" #?%41&.png", "日本.png"]
    someone = person(strange)
    (someone.folder / "broken.png").write_bytes(b"no image")
    someone.open()
    seen = []
    for done in range(1, 5):
        someone.wait(lambda: someone.shown() or "cannot be shown" in someone.text("stage"))
        if "cannot be shown" in someone.text("stage"):
            assert not someone.element("yes").is_enabled()
            someone.click("skip")
        else:
            seen += someone.rate("y", done)
        someone.see(f"{done} of 4", "count")
    assert sorted(seen) == sorted(strange)
    found = someone.saved()
    assert sorted(found.labels) == sorted(strange) and found.skipped == ["broken.png"]


def test_of_several_images_the_broken_one_is_skipped_alone(person, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    someone = person(NAMES[:2], rank=3)
    someone.see("broken.png cannot be shown", "stage")
    for key in "abc":
        someone.press(key)
    assert not someone.element("save").is_enabled()
    someone.click("skip")
    someone.see("1 of 3 images, 1 of them skipped", "count")
    someone.shown()
    for key in "ba":
        someone.press(key)
    names = someone.rate("save", 3)
    found = someone.saved()
    assert found.rankings == [names[::-1]] and found.skipped == ["broken.png"]


def test_shortcuts_can_be_switched_off(person):
    someone = person(NAMES)
    someone.shown()
    someone.click("keys")
    someone.press("y")
    someone.click("no")
    someone.see("1 of 8", "count")
    assert list(someone.saved().labels.values()) == [False]
