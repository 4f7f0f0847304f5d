"""The signal of each pulse sequence, in closed form, for any tensor of tissues or voxels.

    table = sample_tissues(3.0, generator)
    t1w = tissue_signals(Mprage(), table)                                            # (tissues,)
    t1w_contrast = tissue_signals(Mprage(), table.with_gadolinium(TYPICAL_UPTAKE_MMOL_L))

Milliseconds and degrees throughout; b in s/mm^2; ADC in 1e-3 mm^2/s. Signals are fractions of what fully relaxed CSF
(PD 1) gives at once after 90 degrees, and carry a sign: after an inversion, CSF may still point down. A voxel that
holds several tissues is the sum of their signals, each with its sign, never the signal of averaged T1s; the magnitude
is taken after that, where the image is reconstructed. Air has PD 0 and with it signal 0, whatever its times.

All assume instantaneous pulses, exact refocusing, nothing left in the transverse plane when the next excitation comes,
and steady state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from foundation.errors import InputError
from foundation.physics.relaxometry import TissueTable
from foundation.study import Acquisition


@runtime_checkable
class PulseSequence(Protocol):
    """What the cohort needs of a sequence, whichever it is."""

    @property
    def fat_factor(self) -> float:
        """What is left of fat's signal: 1 without fat suppression."""
        ...

    def signal(
        self,
        t1: Float[Tensor, "*#shape"],
        t2: Float[Tensor, "*#shape"],
        t2_star: Float[Tensor, "*#shape"],
        pd: Float[Tensor, "*#shape"],
        adc: Float[Tensor, "*#shape"],
    ) -> Float[Tensor, "..."]:
        """Signed signal of water with these times (ms), PD (CSF 1) and ADC (1e-3 mm^2/s), which broadcast."""
        ...

    def acquisition(self, field_t: float | None = None, vendor: str | None = None) -> Acquisition:
        """What a header would say of it."""
        ...


def tissue_signals(sequence: PulseSequence, tissues: TissueTable) -> Float[Tensor, "tissues"]:
    """The signed signal of every tissue of a subject, fat suppressed if the sequence does so."""
    signal = sequence.signal(*tissues.properties)
    return torch.where(tissues.is_fat, sequence.fat_factor * signal, signal)


# ------------------------------------------------------------------------------------------------- Shared small parts


def _decay(time_ms: float, constant_ms: Tensor) -> Tensor:
    return torch.exp(-time_ms / constant_ms)


def _check_times(**times: float) -> None:
    for name, value in times.items():
        if not 0 < value < math.inf:
            raise InputError(f"{name} is positive and finite", got=value, remedy="Give milliseconds.")


def _check_echo(te_ms: float, within_ms: float) -> None:
    if not 0 <= te_ms < within_ms:
        raise InputError(
            "an echo time is not negative and ends before the next excitation",
            got=f"{te_ms:g} ms, excitations {within_ms:g} ms apart",
            remedy="Give te_ms in milliseconds, shorter than that.",
        )


def _check_flip(flip_deg: float) -> None:
    if not 0 < flip_deg < 180:
        raise InputError(
            "a flip angle lies between 0 and 180 degrees", got=flip_deg, remedy="Give degrees, not radians."
        )


def _check_fractions(**fractions: float) -> None:
    for name, value in fractions.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name} is a fraction from 0 to 1", got=value, remedy="Give 1 for all of it.")


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} is at least 1", got=value, remedy="Give a positive whole number.")


def _check_train(tr_ms: float, te_ms: float, echo_train_length: int, echo_spacing_ms: float) -> None:
    _check_times(tr_ms=tr_ms, echo_spacing_ms=echo_spacing_ms)
    _check_count("echo_train_length", echo_train_length)
    train_ms = echo_train_length * echo_spacing_ms
    if not (0 <= te_ms <= train_ms < tr_ms):
        raise InputError(
            "the echo time is not negative and lies in the echo train, and the train in TR",
            got=f"TE {te_ms:g} ms, train {train_ms:g} ms, TR {tr_ms:g} ms",
            remedy="Give te_ms up to echo_train_length * echo_spacing_ms, and a longer tr_ms.",
        )


# ---------------------------------------------------------------------------------------------------------- Sequences


@dataclass(frozen=True)
class Mprage:
    """T1w: inversion, delay, `num_pulses` spoiled pulses, recovery; TI runs to the pulse at the centre of k-space.

    (Mugler and Brookeman 1990, 10.1002/mrm.1910150117.) Between the pulses n and n + 1 of flip a, E = exp(-esp / T1),

        M[n+1] = c M[n] + 1 - E,    c = E cos a,    hence    M[n] = c^n M[0] + (1 - E) (1 - c^n) / (1 - c).

    Recovery to the end of TR, inversion M -> (1 - 2e) M and the delay to pulse 0 are affine in M as well, so that M[0]
    is the fixed point B / (1 - A) of an affine map. The signal is PD M[k0] sin a exp(-TE / T2*).
    """

    tr_ms: float = 2300.0  # from inversion to inversion
    ti_ms: float = 900.0
    te_ms: float = 3.0
    flip_deg: float = 9.0
    echo_spacing_ms: float = 7.1
    num_pulses: int = 176
    inversion_efficiency: float = 0.96
    fat_factor: float = 1.0

    def __post_init__(self) -> None:
        _check_times(tr_ms=self.tr_ms, ti_ms=self.ti_ms, echo_spacing_ms=self.echo_spacing_ms)
        _check_echo(self.te_ms, self.echo_spacing_ms)
        _check_flip(self.flip_deg)
        _check_fractions(inversion_efficiency=self.inversion_efficiency, fat_factor=self.fat_factor)
        _check_count("num_pulses", self.num_pulses)
        if self._before_ms < 0 or self._after_ms < 0:
            raise InputError(
                "the pulse train lies between the inversion and the next one",
                got=f"{self._before_ms:g} ms before it, {self._after_ms:g} ms after it",
                remedy="Lengthen ti_ms or tr_ms, or take fewer pulses or a shorter echo spacing.",
            )

    @property
    def k0_pulse(self) -> int:
        """The pulse at the centre of k-space: the middle one, as the lines are read in order."""
        return self.num_pulses // 2

    @property
    def _before_ms(self) -> float:
        return self.ti_ms - self.k0_pulse * self.echo_spacing_ms

    @property
    def _after_ms(self) -> float:
        return self.tr_ms - self._before_ms - self.num_pulses * self.echo_spacing_ms

    def signal(
        self,
        t1: Float[Tensor, "*#shape"],
        t2: Float[Tensor, "*#shape"],
        t2_star: Float[Tensor, "*#shape"],
        pd: Float[Tensor, "*#shape"],
        adc: Float[Tensor, "*#shape"],
    ) -> Float[Tensor, "..."]:
        """Needs T1, T2* and PD; see `PulseSequence.signal` for units."""
        flip = math.radians(self.flip_deg)
        between, before, after = (_decay(time, t1) for time in (self.echo_spacing_ms, self._before_ms, self._after_ms))
        per_pulse = between * math.cos(flip)
        limit = (1 - between) / (1 - per_pulse)  # where infinitely many pulses would leave it

        def after_pulses(num: int) -> tuple[Tensor, Tensor]:
            """Slope and offset of M[num] as a function of M[0]."""
            slope = per_pulse**num
            return slope, limit * (1 - slope)

        slope, offset = after_pulses(self.num_pulses)
        inverted = (1 - 2 * self.inversion_efficiency) * before
        start = (1 - before + inverted * (after * offset + 1 - after)) / (1 - inverted * after * slope)
        slope, offset = after_pulses(self.k0_pulse)
        return pd * (slope * start + offset) * math.sin(flip) * _decay(self.te_ms, t2_star)

    def acquisition(self, field_t: float | None = None, vendor: str | None = None) -> Acquisition:
        """What a header would say of it."""
        return Acquisition(self.te_ms, self.tr_ms, self.ti_ms, self.flip_deg, field_t, vendor)


@dataclass(frozen=True)
class TurboSpinEcho:
    """T2w, or PD with a short TE: PD (1 - exp(-(TR - train) / T1)) exp(-TE / T2), TE the echo at the centre of k-space.

    The refocusing pulses hold the longitudinal magnetisation near zero during the train, so that recovery starts at its
    end (Bernstein, King and Zhou, Handbook of MRI Pulse Sequences, 16.4). Neglected are stimulated echoes, magnetisation
    transfer and the lengthened T2 of fat.
    """

    tr_ms: float = 4500.0
    te_ms: float = 95.0
    echo_train_length: int = 20
    echo_spacing_ms: float = 9.5
    fat_factor: float = 1.0

    def __post_init__(self) -> None:
        _check_train(self.tr_ms, self.te_ms, self.echo_train_length, self.echo_spacing_ms)
        _check_fractions(fat_factor=self.fat_factor)

    @property
    def train_ms(self) -> float:
        return self.echo_train_length * self.echo_spacing_ms

    def signal(
        self,
        t1: Float[Tensor, "*#shape"],
        t2: Float[Tensor, "*#shape"],
        t2_star: Float[Tensor, "*#shape"],
        pd: Float[Tensor, "*#shape"],
        adc: Float[Tensor, "*#shape"],
    ) -> Float[Tensor, "..."]:
        """Needs T1, T2 and PD; see `PulseSequence.signal` for units."""
        return pd * (1 - _decay(self.tr_ms - self.train_ms, t1)) * _decay(self.te_ms, t2)

    def acquisition(self, field_t: float | None = None, vendor: str | None = None) -> Acquisition:
        """What a header would say of it."""
        return Acquisition(self.te_ms, self.tr_ms, None, 90.0, field_t, vendor)


PROTON_DENSITY = TurboSpinEcho(tr_ms=3000.0, te_ms=15.0, echo_train_length=4, echo_spacing_ms=15.0)


@dataclass(frozen=True)
class Flair:
    """FLAIR: a turbo spin echo after an inversion whose TI nulls CSF. With W = TR - train and M -> (1 - 2e) M,

        PD (1 - 2e exp(-TI / T1) + (2e - 1) exp(-W / T1)) exp(-TE / T2).

    Follows from zero at the end of the train, recovery, inversion and recovery again; e = 1 is the textbook's form
    (Bernstein, King and Zhou, 14.2). The default TI nulls a T1 of about 4 s; `nulling` computes it.
    """

    tr_ms: float = 9000.0
    ti_ms: float = 2250.0
    te_ms: float = 110.0
    echo_train_length: int = 20
    echo_spacing_ms: float = 10.0
    inversion_efficiency: float = 0.97
    fat_factor: float = 1.0

    def __post_init__(self) -> None:
        _check_train(self.tr_ms, self.te_ms, self.echo_train_length, self.echo_spacing_ms)
        _check_times(ti_ms=self.ti_ms)
        _check_fractions(inversion_efficiency=self.inversion_efficiency, fat_factor=self.fat_factor)
        if self.ti_ms + self.train_ms > self.tr_ms:
            raise InputError(
                "inversion time and echo train fit into TR",
                got=f"{self.ti_ms:g} + {self.train_ms:g} ms in {self.tr_ms:g} ms",
                remedy="Lengthen tr_ms or shorten ti_ms.",
            )

    @property
    def train_ms(self) -> float:
        return self.echo_train_length * self.echo_spacing_ms

    def nulling(self, t1_csf_ms: float) -> Flair:
        """The same protocol with the TI at which CSF of this T1 gives no signal."""
        return replace(self, ti_ms=flair_ti(t1_csf_ms, self.tr_ms, self.train_ms, self.inversion_efficiency))

    def signal(
        self,
        t1: Float[Tensor, "*#shape"],
        t2: Float[Tensor, "*#shape"],
        t2_star: Float[Tensor, "*#shape"],
        pd: Float[Tensor, "*#shape"],
        adc: Float[Tensor, "*#shape"],
    ) -> Float[Tensor, "..."]:
        """Needs T1, T2 and PD; see `PulseSequence.signal` for units."""
        twice = 2 * self.inversion_efficiency
        recovered = 1 - twice * _decay(self.ti_ms, t1) + (twice - 1) * _decay(self.tr_ms - self.train_ms, t1)
        return pd * recovered * _decay(self.te_ms, t2)

    def acquisition(self, field_t: float | None = None, vendor: str | None = None) -> Acquisition:
        """What a header would say of it."""
        return Acquisition(self.te_ms, self.tr_ms, self.ti_ms, 90.0, field_t, vendor)


def flair_ti(t1_csf_ms: float, tr_ms: float, train_ms: float, inversion_efficiency: float = 0.97) -> float:
    """The TI (ms) at which CSF vanishes: T1 (ln 2e - ln(1 + (2e - 1) exp(-(TR - train) / T1))), `Flair` set to zero."""
    _check_times(t1_csf_ms=t1_csf_ms, tr_ms=tr_ms)
    _check_fractions(inversion_efficiency=inversion_efficiency)
    if not 0 <= train_ms < tr_ms:
        raise InputError(
            "the echo train fits into TR", got=f"{train_ms:g} ms in {tr_ms:g} ms", remedy="Lengthen tr_ms."
        )
    if inversion_efficiency <= 0.5:
        raise InputError(
            "a null needs an inversion that turns more than half of the magnetisation over",
            got=inversion_efficiency,
            remedy="Set inversion_efficiency near 1.",
        )
    twice = 2 * inversion_efficiency
    return t1_csf_ms * (math.log(twice) - math.log1p((twice - 1) * math.exp(-(tr_ms - train_ms) / t1_csf_ms)))


@dataclass(frozen=True)
class SpoiledGradientEcho:
    """GRE, T2*w and the magnitude of SWI: PD sin a (1 - E) / (1 - E cos a) exp(-TE / T2*), E = exp(-TR / T1).

    (Ernst and Anderson 1966, 10.1063/1.1719961.) A flip angle near acos E gives the most signal.
    """

    tr_ms: float = 28.0
    te_ms: float = 20.0
    flip_deg: float = 15.0
    fat_factor: float = 1.0

    def __post_init__(self) -> None:
        _check_times(tr_ms=self.tr_ms)
        _check_echo(self.te_ms, self.tr_ms)
        _check_flip(self.flip_deg)
        _check_fractions(fat_factor=self.fat_factor)

    def signal(
        self,
        t1: Float[Tensor, "*#shape"],
        t2: Float[Tensor, "*#shape"],
        t2_star: Float[Tensor, "*#shape"],
        pd: Float[Tensor, "*#shape"],
        adc: Float[Tensor, "*#shape"],
    ) -> Float[Tensor, "..."]:
        """Needs T1, T2* and PD; see `PulseSequence.signal` for units."""
        flip = math.radians(self.flip_deg)
        left = _decay(self.tr_ms, t1)
        return pd * math.sin(flip) * (1 - left) / (1 - left * math.cos(flip)) * _decay(self.te_ms, t2_star)

    def acquisition(self, field_t: float | None = None, vendor: str | None = None) -> Acquisition:
        """What a header would say of it."""
        return Acquisition(self.te_ms, self.tr_ms, None, self.flip_deg, field_t, vendor)


@dataclass(frozen=True)
class DiffusionEpi:
    """DWI: a spin echo read by EPI, the same in all directions,

        PD (1 - 2 exp(-(TR - TE/2) / T1) + exp(-TR / T1)) exp(-TE / T2) exp(-b ADC).

    The refocusing pulse at TE/2 turns over what had recovered until then (Bernstein, King and Zhou, 14.3); attenuation
    after Stejskal and Tanner 1965, 10.1063/1.1695690. EPI cannot bear fat, hence its suppression.
    """

    b_value: float = 1000.0
    tr_ms: float = 5000.0
    te_ms: float = 80.0
    fat_factor: float = 0.04

    def __post_init__(self) -> None:
        _check_times(tr_ms=self.tr_ms)
        _check_echo(self.te_ms, self.tr_ms)
        _check_fractions(fat_factor=self.fat_factor)
        if not 0 <= self.b_value < math.inf:
            raise InputError("a b-value is not negative", got=self.b_value, remedy="Give s/mm^2, 0 for none.")

    def signal(
        self,
        t1: Float[Tensor, "*#shape"],
        t2: Float[Tensor, "*#shape"],
        t2_star: Float[Tensor, "*#shape"],
        pd: Float[Tensor, "*#shape"],
        adc: Float[Tensor, "*#shape"],
    ) -> Float[Tensor, "..."]:
        """Needs T1, T2, PD and ADC; see `PulseSequence.signal` for units."""
        recovered = 1 - 2 * _decay(self.tr_ms - self.te_ms / 2, t1) + _decay(self.tr_ms, t1)
        return pd * recovered * _decay(self.te_ms, t2) * torch.exp(-1e-3 * self.b_value * adc)

    def acquisition(self, field_t: float | None = None, vendor: str | None = None) -> Acquisition:
        """What a header would say of it, b-value apart."""
        return Acquisition(self.te_ms, self.tr_ms, None, 90.0, field_t, vendor)


def adc_from_dwi(b0: Float[Tensor, "*#shape"], b: Float[Tensor, "*#shape"], b_value: float) -> Float[Tensor, "..."]:
    """ADC (1e-3 mm^2/s) of two magnitudes with the same receive field: 1000 ln(b0 / b) / b_value.

    Zero where noise or air gives no positive answer, as scanners write it.
    """
    if not 0 < b_value < math.inf:
        raise InputError("an ADC needs a positive b-value", got=b_value, remedy="Give that of the weighted image.")
    usable = (b0 > 0) & (b > 0)
    ratio = torch.where(usable, b0, 1) / torch.where(usable, b, 1)
    return (1000.0 / b_value * torch.log(ratio)).clamp_min(0)
