"""What tissues are made of, as far as MRI can tell: T1, T2, T2*, water content and diffusion at 1.5 T and 3 T.

Times are milliseconds, PD is relative to CSF, ADC is in 1e-3 mm^2/s, gadolinium in mmol/l, fields in tesla.

Every number names its source and what that lists, or is the literal word "estimate". Sources disagree: white matter T1
at 3 T is reported from 0.6 to 1.1 s, much of it magnetisation transfer (Asslander 2024). So what is true here is true
of the simulator only. Some of BrainWeb is left out on purpose: its T1 of white and grey matter and CSF (500, 833 and
2569 ms) and its T2 and T2* of CSF (329 and 58 ms) are far below later measurements, its plaques are built on them, and
its skin is a copy of its CSF.

    BrainWeb     brainweb.bic.mni.mcgill.ca, constants at 1.5 T
    Ernst        1993, 10.1006/jmrb.1993.1055, water densities divided by that of CSF
    FSL-MRS      literature survey in fsl_mrs/utils/constants.py, 3 T
    gliomas      Oncology Letters 14:2009 (2017), ADC by grade
    Lu           2004, 10.1002/mrm.20178, venous and arterial blood at 3 T
    MRzero       tables of MRzero-Core after BrainWeb's classes, 3 T
    Peters       2007, Magn. Reson. Imaging 25:748, T2* at 1.5 and 3 T
    SpinSight    tissue table of the teaching simulator
    Stanisz      2005, 10.1002/mrm.20605
    Wright       2008, 10.1007/s10334-008-0104-8
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.random import Generator
from torch import Tensor

from foundation.errors import InputError, did_you_mean

ESTIMATE = "estimate"
FIELDS_T = (1.5, 3.0)  # tabulated
LEAST_FIELD_T, GREATEST_FIELD_T = 0.3, 7.0  # further off, a power law through the two says nothing


@dataclass(frozen=True)
class Value:
    """A typical number, the half-width of its range as a fraction of it, and where it comes from.

    A subject's own is drawn evenly from the range, so that no draw is an outlier.
    """

    typical: float
    spread: float
    source: str = ESTIMATE

    @property
    def low(self) -> float:
        return self.typical * (1 - self.spread)

    @property
    def high(self) -> float:
        return self.typical * (1 + self.spread)


@dataclass(frozen=True)
class Relaxation:
    """Relaxation times at one field, ms."""

    t1: Value
    t2: Value
    t2_star: Value


@dataclass(frozen=True)
class Tissue:
    """One tissue. PD is relative to CSF, ADC in 1e-3 mm^2/s; neither depends on the field."""

    pd: Value
    adc: Value
    at_3t: Relaxation
    known_at_1_5t: Relaxation | None = None
    is_fat: bool = False

    @cached_property
    def at_1_5t(self) -> Relaxation:
        """Tabulated, or estimated from 3 T: T1 ~ B^0.38 as brain tissue (Rooney 2007), T2 10 % longer, R2' ~ B."""
        if self.known_at_1_5t is not None:
            return self.known_at_1_5t
        t1, t2, t2_star = (value.typical for value in (self.at_3t.t1, self.at_3t.t2, self.at_3t.t2_star))
        reversible = 1 / t2_star - 1 / t2
        return Relaxation(
            Value(t1 * 0.5**0.38, self.at_3t.t1.spread),
            Value(min(1.1 * t2, t1 * 0.5**0.38), self.at_3t.t2.spread),
            Value(1 / (1 / (1.1 * t2) + reversible / 2), self.at_3t.t2_star.spread),
        )


TISSUES: dict[str, Tissue] = {
    # ------------------------------------------------------------------------------------------------------- Brain
    "grey_matter": Tissue(
        pd=Value(0.83, 0.05, "Ernst: 0.80; BrainWeb: 0.86"),
        adc=Value(0.83, 0.08, "MRzero: 0.83"),
        at_3t=Relaxation(
            Value(1420.0, 0.10, "MRzero: 1558; FSL-MRS: 1500"),
            Value(92.0, 0.10, "MRzero: 83; FSL-MRS: 88"),
            Value(62.0, 0.10, "MRzero: 66; Peters: 66"),
        ),
        known_at_1_5t=Relaxation(
            Value(1130.0, 0.08, "Wright: 1197; Stanisz: 1124"),
            Value(95.0, 0.13, "Stanisz: 95; BrainWeb: 83"),
            Value(78.0, 0.12, "Peters: 84; BrainWeb: 69"),
        ),
    ),
    "white_matter": Tissue(
        pd=Value(0.70, 0.05, "Ernst: 0.67"),
        adc=Value(0.70, 0.08, "MRzero: 0.65"),
        at_3t=Relaxation(
            Value(850.0, 0.10, "MRzero: 830; Wright: 838"),
            Value(72.0, 0.08, "MRzero: 75; FSL-MRS: 73"),
            Value(52.0, 0.06, "MRzero: 53; Peters: 53.2"),
        ),
        known_at_1_5t=Relaxation(
            Value(640.0, 0.10, "Wright: 646"),
            Value(75.0, 0.10, "Stanisz: 72; BrainWeb: 70"),
            Value(64.0, 0.06, "Peters: 66.2; BrainWeb: 61"),
        ),
    ),
    "csf": Tissue(
        pd=Value(1.0, 0.0, "by definition"),
        adc=Value(3.0, 0.07, "MRzero: 3.19"),
        at_3t=Relaxation(
            Value(4050.0, 0.11, "MRzero: 4163; FSL-MRS: 4470"),
            Value(1800.0, 0.15, "MRzero: 1650; FSL-MRS: 2030"),
            Value(800.0, 0.20),
        ),
        known_at_1_5t=Relaxation(
            Value(4200.0, 0.08, "SpinSight: 4280"),
            Value(2000.0, 0.10, "SpinSight: 2030"),
            Value(1000.0, 0.20),
        ),
    ),
    # Iron shortens T2* from the thalamus over caudate and putamen to the pallidum, and more with age.
    "deep_grey": Tissue(
        pd=Value(0.78, 0.04),
        adc=Value(0.76, 0.07),
        at_3t=Relaxation(Value(1200.0, 0.10), Value(78.0, 0.08), Value(38.0, 0.20)),
    ),
    "thalamus": Tissue(
        pd=Value(0.78, 0.04),
        adc=Value(0.76, 0.07),
        at_3t=Relaxation(Value(1200.0, 0.08), Value(84.0, 0.08), Value(48.0, 0.10)),
    ),
    "striatum": Tissue(
        pd=Value(0.79, 0.04),
        adc=Value(0.76, 0.07),
        at_3t=Relaxation(Value(1280.0, 0.10, "Wright: 1332; Wright: 1395"), Value(76.0, 0.08), Value(36.0, 0.20)),
        known_at_1_5t=Relaxation(
            Value(1080.0, 0.08, "Wright: 1084; Wright: 1109"), Value(82.0, 0.08), Value(52.0, 0.20)
        ),
    ),
    "pallidum": Tissue(
        pd=Value(0.74, 0.04),
        adc=Value(0.75, 0.07),
        at_3t=Relaxation(Value(1010.0, 0.08), Value(60.0, 0.08), Value(21.0, 0.20)),
    ),
    "hindbrain_grey": Tissue(
        pd=Value(0.82, 0.05),
        adc=Value(0.78, 0.08),
        at_3t=Relaxation(Value(1350.0, 0.08), Value(90.0, 0.08), Value(58.0, 0.10)),
    ),
    "hindbrain_white": Tissue(
        pd=Value(0.74, 0.05),
        adc=Value(0.75, 0.08),
        at_3t=Relaxation(Value(960.0, 0.08), Value(78.0, 0.08), Value(50.0, 0.08)),
    ),
    # ------------------------------------------------------------------------------------------- Rest of the head
    "muscle": Tissue(
        pd=Value(0.85, 0.05),
        adc=Value(1.4, 0.15),
        at_3t=Relaxation(
            Value(1255.0, 0.13, "MRzero: 1100; Stanisz: 1412"), Value(38.0, 0.20, "MRzero: 40"), Value(26.0, 0.15)
        ),
        known_at_1_5t=Relaxation(
            Value(950.0, 0.08, "Stanisz: 1008; BrainWeb: 900"),
            Value(42.0, 0.20, "BrainWeb: 47"),
            Value(30.0, 0.15, "BrainWeb: 30"),
        ),
    ),
    "fat": Tissue(
        pd=Value(0.95, 0.06, "BrainWeb: 1.0"),
        adc=Value(0.1, 0.30),
        at_3t=Relaxation(Value(370.0, 0.08, "MRzero: 374"), Value(125.0, 0.15, "MRzero: 125"), Value(30.0, 0.20)),
        known_at_1_5t=Relaxation(
            Value(320.0, 0.12, "BrainWeb: 350; SpinSight: 290"),
            Value(130.0, 0.28, "SpinSight: 165"),
            Value(50.0, 0.20, "BrainWeb: 58"),
        ),
        is_fat=True,
    ),
    "marrow": Tissue(  # of the diploe, mostly yellow
        pd=Value(0.75, 0.08),
        adc=Value(0.25, 0.30),
        at_3t=Relaxation(Value(470.0, 0.25, "MRzero: 586"), Value(115.0, 0.15, "MRzero: 127"), Value(20.0, 0.20)),
        is_fat=True,
    ),
    "bone": Tissue(  # cortical: gone before any of these sequences can read it
        pd=Value(0.08, 0.30),
        adc=Value(0.1, 0.30),
        at_3t=Relaxation(Value(300.0, 0.20), Value(0.5, 0.25), Value(0.3, 0.25)),
    ),
    "skin": Tissue(
        pd=Value(0.70, 0.08),
        adc=Value(1.0, 0.20),
        at_3t=Relaxation(Value(1000.0, 0.12), Value(40.0, 0.20), Value(25.0, 0.20)),
    ),
    "blood": Tissue(  # at rest; T2 falls with deoxygenation and flow is not modelled
        pd=Value(0.80, 0.06),
        adc=Value(2.0, 0.20),
        at_3t=Relaxation(Value(1740.0, 0.095, "Lu: 1584; Lu: 1664"), Value(100.0, 0.50), Value(45.0, 0.30)),
        known_at_1_5t=Relaxation(Value(1440.0, 0.08, "Stanisz: 1441"), Value(180.0, 0.30), Value(90.0, 0.30)),
    ),
    # ----------------------------------------------------------------------------------------------------- Disease
    "oedema": Tissue(  # vasogenic
        pd=Value(0.88, 0.04),
        adc=Value(1.45, 0.15),
        at_3t=Relaxation(Value(1550.0, 0.18), Value(160.0, 0.15), Value(95.0, 0.15)),
    ),
    "non_enhancing_tumour": Tissue(
        pd=Value(0.86, 0.04),
        adc=Value(1.20, 0.15, "gliomas: 1.36"),
        at_3t=Relaxation(Value(1900.0, 0.12), Value(135.0, 0.15), Value(70.0, 0.15)),
    ),
    "enhancing_tumour": Tissue(
        pd=Value(0.85, 0.04),
        adc=Value(1.05, 0.15, "gliomas: 1.09"),
        at_3t=Relaxation(Value(1750.0, 0.10), Value(120.0, 0.12), Value(60.0, 0.15)),
    ),
    "necrosis": Tissue(
        pd=Value(0.95, 0.03),
        adc=Value(2.1, 0.15),
        at_3t=Relaxation(Value(3000.0, 0.12), Value(420.0, 0.25), Value(160.0, 0.25)),
    ),
    "ms_plaque": Tissue(
        pd=Value(0.86, 0.04),
        adc=Value(1.25, 0.15),
        at_3t=Relaxation(Value(1350.0, 0.12), Value(150.0, 0.15), Value(80.0, 0.20)),
    ),
    "wmh": Tissue(  # white matter hyperintensity of presumed vascular origin
        pd=Value(0.80, 0.04),
        adc=Value(1.0, 0.15),
        at_3t=Relaxation(Value(1150.0, 0.10), Value(112.0, 0.10), Value(70.0, 0.15)),
    ),
    "acute_infarct": Tissue(
        pd=Value(0.86, 0.03),
        adc=Value(0.42, 0.20),
        at_3t=Relaxation(Value(1350.0, 0.10), Value(118.0, 0.10), Value(70.0, 0.15)),
    ),
    "haemorrhage": Tissue(  # deoxyhaemoglobin; every later stage looks different
        pd=Value(0.80, 0.05),
        adc=Value(0.6, 0.20),
        at_3t=Relaxation(Value(1150.0, 0.15), Value(60.0, 0.15), Value(9.0, 0.30)),
    ),
}


@dataclass(frozen=True)
class TissueTable:
    """The tissues of one subject at one field, float64; `names` gives their order. Air is in no table: PD 0."""

    names: tuple[str, ...]
    field_t: float
    t1: Float[Tensor, "tissues"]
    t2: Float[Tensor, "tissues"]
    t2_star: Float[Tensor, "tissues"]
    pd: Float[Tensor, "tissues"]
    adc: Float[Tensor, "tissues"]
    is_fat: Bool[Tensor, "tissues"]

    @property
    def properties(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What a pulse sequence's `signal` takes, in its order."""
        return self.t1, self.t2, self.t2_star, self.pd, self.adc

    def index(self, name: str) -> int:
        """The row of a tissue."""
        if name not in self.names:
            raise InputError("a tissue is one of the table", got=repr(name), remedy=did_you_mean(name, self.names))
        return self.names.index(name)

    def with_gadolinium(self, mmol_l: Mapping[str, float], agent: str = "gadobutrol") -> TissueTable:
        """The same subject after an injection that left these concentrations, by tissue name, and none elsewhere."""
        concentration = torch.zeros_like(self.t1)
        for name, value in mmol_l.items():
            concentration[self.index(name)] = value
        t1, t2, t2_star = shortened(self.t1, self.t2, self.t2_star, concentration, self.field_t, agent)
        return replace(self, t1=t1, t2=t2, t2_star=t2_star)


def typical_tissues(field_t: float) -> TissueTable:
    """The middle of every range."""
    return _table(field_t, np.full((len(TISSUES), 5), 0.5))


def sample_tissues(field_t: float, generator: Generator) -> TissueTable:
    """One subject's tissues. The same state of the generator at another field gives the same subject there."""
    return _table(field_t, generator.random((len(TISSUES), 5)))


def _table(field_t: float, place: np.ndarray) -> TissueTable:
    """The table where `place` `(tissues, 5)` says how far into its range each of T1, T2, T2*, PD and ADC lies, 0 to 1.

    T1, T2 and T2* between and beyond 1.5 T and 3 T follow x(B) = x(3 T) (B / 3 T)^p, p such that 1.5 T fits: an
    estimate. It gives 7 T grey and white matter T1 of 1.9 and 1.2 s (Wright: 1.94, 1.13), but T2 and T2* that are too
    long there (T2 88 ms for grey matter, published 50), because those fall faster above 3 T.
    """
    check_field(field_t)

    def at(values: list[Value], column: int) -> np.ndarray:
        low, high = (np.array([getattr(value, end) for value in values]) for end in ("low", "high"))
        return low + (high - low) * place[:, column]

    rows = list(TISSUES.values())
    power = math.log2(field_t / 3.0)
    times = []
    for column, name in enumerate(("t1", "t2", "t2_star")):
        at_1_5t = at([getattr(row.at_1_5t, name) for row in rows], column)
        at_3t = at([getattr(row.at_3t, name) for row in rows], column)
        times.append(at_3t * (at_3t / at_1_5t) ** power)
    t1, t2, t2_star = times
    t2 = np.minimum(t2, t1)
    t2_star = np.minimum(t2_star, t2)  # ranges may overlap; dephasing never lengthens a decay
    pd, adc = at([row.pd for row in rows], 3), at([row.adc for row in rows], 4)
    columns = {"t1": t1, "t2": t2, "t2_star": t2_star, "pd": pd, "adc": adc}
    return TissueTable(
        names=tuple(TISSUES),
        field_t=field_t,
        is_fat=torch.tensor([row.is_fat for row in rows]),
        **{name: torch.from_numpy(column) for name, column in columns.items()},
    )


def check_field(field_t: float) -> None:
    """Raise an `InputError` for a field at which these tables mean nothing."""
    if not LEAST_FIELD_T <= field_t <= GREATEST_FIELD_T:
        raise InputError(
            f"a field strength lies between {LEAST_FIELD_T} and {GREATEST_FIELD_T} T",
            got=f"{field_t} T",
            remedy="Relaxation times are tabulated at 1.5 and 3 T; stay near these.",
        )


# --------------------------------------------------------------------------------------------------------- Gadolinium


@dataclass(frozen=True)
class Agent:
    """A contrast agent's relaxivities in blood plasma at 37 degrees C, l/(mmol s), at each of `AGENT_FIELDS_T`."""

    r1: tuple[float, ...]
    r2: tuple[float, ...]
    r1_source: str
    r2_source: str


AGENT_FIELDS_T = (1.5, 3.0, 7.0)
AGENTS = {
    "gadobutrol": Agent((4.78, 4.97, 3.83), (6.1, 7.1, 7.1), "Szomolanyi 2019, 10.1097/RLI.0000000000000577", ESTIMATE),
    "gadoterate": Agent((3.32, 3.00, 2.84), (4.3, 4.9, 4.9), "Szomolanyi 2019, 10.1097/RLI.0000000000000577", ESTIMATE),
}

# Minutes after a single dose, mmol/l of tissue, all estimates; 0.27 takes the rim's T1 from 1750 to 520 ms at 3 T.
TYPICAL_UPTAKE_MMOL_L = {"enhancing_tumour": 0.27, "blood": 0.5, "muscle": 0.05, "skin": 0.05}


def relaxivity(agent: str, field_t: float) -> tuple[float, float]:
    """r1 and r2 in l/(mmol s): linear between the tabulated fields, constant below the lowest."""
    check_field(field_t)
    if agent not in AGENTS:
        raise InputError("a contrast agent is one we know", got=repr(agent), remedy=did_you_mean(agent, AGENTS))
    row = AGENTS[agent]
    return float(np.interp(field_t, AGENT_FIELDS_T, row.r1)), float(np.interp(field_t, AGENT_FIELDS_T, row.r2))


def shortened(
    t1: Float[Tensor, "*#shape"],
    t2: Float[Tensor, "*#shape"],
    t2_star: Float[Tensor, "*#shape"],
    mmol_l: Float[Tensor, "*#shape"],
    field_t: float,
    agent: str = "gadobutrol",
) -> tuple[Tensor, Tensor, Tensor]:
    """T1, T2 and T2* (ms) in the presence of gadolinium: 1/T = 1/T0 + r C, the same r2 for T2 and T2*.

    Linear in C and without water exchange; that T2* gets no more than T2 neglects the susceptibility of vessels.
    """
    if bool((mmol_l < 0).any()):
        raise InputError("a concentration is not negative", got=float(mmol_l.min()), remedy="Give mmol/l, 0 for none.")
    r1, r2 = (rate / 1000.0 for rate in relaxivity(agent, field_t))  # per second to per millisecond
    return 1 / (1 / t1 + r1 * mmol_l), 1 / (1 / t2 + r2 * mmol_l), 1 / (1 / t2_star + r2 * mmol_l)
