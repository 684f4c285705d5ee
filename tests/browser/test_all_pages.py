# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What holds for every page: it fits, complains of nothing, says what it is, and can be used by everybody."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.axe import violations
from tests.browser.conftest import Pool, watched
from tests.browser.demo_pool import Story

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]

Look = tuple[int, Literal["light", "dark"]]

LOOKS: list[Look] = [(1400, "light"), (390, "dark")]
if os.environ.get("MOZPOOL_LONG_TESTS"):
    LOOKS += [(1400, "dark"), (390, "light")]


@pytest.fixture(params=LOOKS, ids=str)
def page(request: pytest.FixtureRequest, chromium: Browser, pool: Pool) -> Iterator[Page]:
    width, scheme = request.param
    context = chromium.new_context(
        base_url=pool.url, viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    page = context.new_page()
    with watched(page, pool):
        yield page
    context.close()


def test_every_page_fits_says_what_it_is_and_can_be_used_by_everybody(page: Page, pool: Pool) -> None:
    width = page.viewport_size["width"] if page.viewport_size else 0
    wrong: list[str] = []
    titles: dict[str, str] = {}
    story = Story(pool)
    story.tell()
    for path in story.pages().values():
        said = page.goto(path)
        assert said is not None
        if said.status != 200:
            wrong.append(f"{path}: {said.status}")
            continue
        page.wait_for_load_state("load")
        if (wide := page.evaluate("document.documentElement.scrollWidth")) > width:
            wrong.append(f"{path}: is {wide} pixels wide")
        if (headings := page.locator("h1").count()) != 1:
            wrong.append(f"{path}: has {headings} h1")
        titles.setdefault(page.title(), path.partition("?")[0])
        if titles[page.title()] != path.partition("?")[0]:
            wrong.append(f"{path}: has the title of {titles[page.title()]}: {page.title()}")
        wrong += [f"{path}: {each}" for each in violations(page)]
    assert wrong == [], "\n".join(wrong)
