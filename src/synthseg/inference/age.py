"""Children and infants: what is known of the age of who is on a scan, and what that means for networks of adults."""

from __future__ import annotations

from dataclasses import dataclass

from synthseg.inference.scan_warnings import ScanWarning

# Label maps of adults are what all the adult networks were trained on (recipes/README.md); the paper's tests begin with
# adults, too. 2 years: by then the brain has about 80 % of its adult volume and the contrast of white and grey matter
# in T1 is that of adults (Knickmeyer et al. 2008; Paus et al. 2001), before both are other than anything simulated.
ADULT_YEARS = 18.0
INFANT_YEARS = 2.0


@dataclass(frozen=True)
class Age:
    """An age in years, and where it is written."""

    years: float
    source: str


def age_warnings(age: Age | None) -> tuple[ScanWarning, ...]:
    """A warning on a scan of somebody younger than :data:`ADULT_YEARS`; none where the age is not known."""
    if age is None or age.years >= ADULT_YEARS:
        return ()
    told = f"{age.years:.0f} years" if age.years >= INFANT_YEARS else _months(12 * age.years)
    if age.years < INFANT_YEARS:
        message = (
            f"an infant of {told} ({age.source}): the networks were trained on adults, whose brains have another "
            "contrast and shape: do not use these results; for fetuses there is --mode fetal"
        )
        return (ScanWarning("infant", "serious", message),)
    message = (
        f"a child of {told} ({age.source}): the networks were trained on adults only: compare with children of the "
        "same age, not with adults"
    )
    return (ScanWarning("child", "caution", message),)


def _months(count: float) -> str:
    return "1 month" if round(count) == 1 else f"{count:.0f} months"
