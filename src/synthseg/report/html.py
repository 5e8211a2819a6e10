"""Pages from templates: everything escaped, everything inside, and a policy that lets the browser fetch nothing."""

from __future__ import annotations

import base64
import gzip
import hashlib
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from synthseg.errors import UsageError

if TYPE_CHECKING:
    from jinja2 import Environment

NIIVUE = "niivue-0.69.0.min.js"


def require_page_tools() -> None:
    """Raise UsageError if no page can be made: to be asked before the first scan is read, not after it."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
        import PIL  # noqa: F401
    except ImportError as error:
        fix = 'install it with: pip install "synthseg[report]"'
        raise UsageError("the report", found=f"no {error.name}", fix=fix) from error


def render(template: str, scripts: tuple[str, ...], *, viewer: bool = False, **values: Any) -> str:
    """A page.

    Args:
        template: a name in ``templates/``.
        scripts: names in ``static/``, put into the page in this order.
        viewer: whether the page holds NiiVue, which its own script unpacks.
        values: what the template shows. Strings are escaped.
    """
    codes = [static_text(name) for name in scripts]
    trusted = [*codes, static_text(NIIVUE)] if viewer else codes
    text = (
        _environment()
        .get_template(template)
        .render(
            policy=content_policy(trusted),
            style=static_text("page.css"),
            scripts=codes,
            niivue=_packed_viewer() if viewer else "",
            **values,
        )
    )
    return printable(text)


def printable(text: str) -> str:
    """The text with "?" for what is no Unicode, such as bytes in file names of another encoding."""
    return text.encode("utf-8", "replace").decode("utf-8")


def content_policy(scripts: list[str]) -> str:
    """The page's Content-Security-Policy: these scripts and no other, nothing from anywhere, nothing sent anywhere."""
    sums = (base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in scripts)
    allowed = " ".join(f"'sha256-{total}'" for total in sums)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "connect-src data: blob:; base-uri 'none'; form-action 'none'"
    )


@cache
def static_text(name: str) -> str:
    """A file of ``static/`` as text."""
    return (resources.files("synthseg.report") / "static" / name).read_text(encoding="utf-8")


@cache
def _packed_viewer() -> str:
    """Base64 of gzip, which the page's script unpacks."""
    return encoded(gzip.compress(static_text(NIIVUE).encode(), compresslevel=9, mtime=0))


def encoded(content: bytes) -> str:
    """Base64."""
    return base64.b64encode(content).decode("ascii")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from jinja2.filters import do_urlencode

    environment = Environment(
        loader=PackageLoader("synthseg.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["link"] = lambda name: do_urlencode(name).replace("/", "%2F")  # a file beside the page
    environment.filters["ml"] = lambda mm3: f"{mm3 / 1000:,.2f}"
    return environment
