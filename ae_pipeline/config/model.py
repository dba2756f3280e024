"""The words of the YAML about the network and its training."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ByteSize, ConfigDict, Field, field_validator, model_validator

from ae_pipeline.common.deprecation import warn_deprecated


class Section(BaseModel):
    """A section of the YAML: frozen, and strict about its keys.

    Attributes:
        renamed_keys: Deprecated keys of the section, each with the key that replaces it.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {}

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _accept_renamed_keys(cls, values: Any) -> Any:
        if not isinstance(values, dict) or cls.renamed_keys.keys().isdisjoint(values):
            return values
        accepted = dict(values)
        for old in cls.renamed_keys.keys() & values.keys():
            new = cls.renamed_keys[old]
            if new in values:
                raise ValueError(f"{old}={values[old]!r} and {new}={values[new]!r} name one setting; keep {new}")
            warn_deprecated(old, new, f"section {cls.__name__.removesuffix('Config').lower()} of the YAML")
            accepted[new] = accepted.pop(old)
        return accepted


class LossTerm(StrEnum):
    """A term of the reconstruction loss; all but the likelihood are means over the elements of a row."""

    LIKELIHOOD = "likelihood"
    MSE = "mse"
    MAE = "mae"
    HUBER = "huber"
    BCE = "bce"
    SSIM = "ssim"


class Scaling(StrEnum):
    """How inputs are scaled before the network sees them."""

    ROBUST = "robust"
    STANDARD = "standard"
    UNIT = "unit"
    SYMMETRIC = "symmetric"


class Output(StrEnum):
    """Activation of the output."""

    LINEAR = "linear"
    SIGMOID = "sigmoid"
    TANH = "tanh"


OUTPUT_OF = {
    Scaling.ROBUST: Output.LINEAR,
    Scaling.STANDARD: Output.LINEAR,
    Scaling.UNIT: Output.SIGMOID,
    Scaling.SYMMETRIC: Output.TANH,
}
"""The output whose range is that of the scaling; a linear one fits any."""


class ModelConfig(Section):
    """The network, what it sees and what it is judged by."""

    architecture: str = Field(
        default="dense", description="Kind of autoencoder: dense for tables and images, conv for images."
    )
    variational: bool = Field(
        default=False,
        description="Encode to a normal distribution: drawn from in training, its mean afterwards (Kingma & Welling "
        "2014).",
    )
    latent_dim: int | None = Field(
        default=None,
        ge=1,
        description="Width of the latent space: columns z_000 … of the table. When left out 8, or half of the encoded "
        "inputs where these are fewer than 16.",
    )
    hidden: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        default=None,
        description="Widths of the encoder's dense hidden layers, mirrored by the decoder; [128] for dense when left "
        "out. In conv they stand between the last map and the latent space, none when left out.",
    )
    tied: bool = Field(
        default=False, description="The decoder of dense takes the transposed weights of the encoder; fewer weights."
    )
    channels: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(16, 32, 64), min_length=1, description="Channels of each level of conv; each level halves the image."
    )
    down: Literal["stride", "pool"] = Field(
        default="stride", description="How conv halves: convolution of stride 2, or convolution and max pooling."
    )
    up: Literal["transpose", "upsample"] = Field(
        default="transpose", description="How conv doubles: transposed convolution, or upsampling and convolution."
    )
    activation: Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh"] = Field(
        default="relu", description="Activation between the layers."
    )
    scaling: Scaling | None = Field(
        default=None,
        description="Of the inputs: robust (asinh of the distance from the median in quartiles; numbers of tables "
        "alone), standard (mean 0, deviation 1), unit (0 to 1), symmetric (-1 to 1). When left out robust for tables "
        "and unit for images.",
    )
    output: Output | None = Field(
        default=None,
        description="Activation of the output: linear fits every scaling, sigmoid goes with unit, tanh with symmetric. "
        "When left out linear under the likelihood, and otherwise the one whose range is that of the scaling.",
    )
    loss: dict[LossTerm, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        description="Terms of the reconstruction loss and their weights, such as {mse: 0.8, ssim: 0.2}: mse, mae, "
        "huber, bce (unit scaling), ssim (images; 1 - SSIM), all means over the elements of a row; or likelihood "
        "(tables), for each kind of column the one that fits it. When left out likelihood for tables, mse for images.",
    )
    huber_delta: float = Field(default=1.0, gt=0, description="Where huber turns from squares to distances.")

    @field_validator("loss")
    @classmethod
    def _likelihood_is_alone(cls, value: dict[LossTerm, float]) -> dict[LossTerm, float]:
        if LossTerm.LIKELIHOOD in value and len(value) > 1:
            raise ValueError(
                f"loss={format_loss(value)}: likelihood goes with no other term; name it alone, or leave it out"
            )
        return value


class TrainingConfig(Section):
    """The window a model learns from and how it learns."""

    window_days: int = Field(
        default=365, ge=3, description="Days before the newest one that a training looks at, cut by time as below."
    )
    validation_days: int = Field(
        default=21, ge=1, description="Days after the training days on which early stopping looks."
    )
    calibration_days: int = Field(
        default=42, ge=1, description="The newest days of the window, kept for the p-values of the scores."
    )
    epochs: int = Field(default=12, ge=1, description="Passes over the training days at most.")
    batch_size: int = Field(default=512, ge=1, description="Rows in one step.")
    optimizer: Literal["gd", "sgd", "momentum", "nesterov", "adam", "adamw"] = Field(
        default="adamw",
        description="gd takes one step an epoch, over all rows; sgd, momentum and nesterov one a batch, as do adam and "
        "adamw, which scale each weight's step by its own gradients.",
    )
    learning_rate: float = Field(default=6e-3, gt=0, description="Highest step size; it follows the schedule.")
    schedule: Literal["constant", "cosine", "one_cycle"] = Field(
        default="cosine",
        description="cosine: rises over the first 5 % of the steps and falls to zero along a cosine; one_cycle: rises "
        "for 30 % of them and falls to almost nothing (Smith & Topin 2018).",
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Of momentum and nesterov.")
    weight_decay: float = Field(
        default=1e-4, ge=0, description="Decoupled from the gradient in adamw, an L2 penalty in the others."
    )
    beta: float = Field(
        default=1.0,
        ge=0,
        description="Weight of the KL divergence of variational forms; with bce or likelihood and 1 training minimises "
        "-ELBO. Beside losses that are means over elements it is divided by their number likewise. Beside mse choose "
        "about twice the variance of the noise, 0.001 for images on the unit scale: 1 would collapse the latents.",
    )
    beta_warmup: int = Field(
        default=0, ge=0, description="Epochs over which beta rises to its value, so that latents do not collapse early."
    )
    clip_norm: float | None = Field(
        default=None, gt=0, description="Longest gradient over all weights; a longer one is cut to it."
    )
    corruption: Literal["none", "gaussian", "masking", "salt_and_pepper"] = Field(
        default="none",
        description="Noise on the inputs in training, whose clean form is to be reconstructed (Vincent et al. 2008): "
        "gaussian adds it, masking sets entries to zero, salt_and_pepper to one end of the scale (unit or symmetric).",
    )
    corruption_level: float = Field(
        default=0.1,
        gt=0,
        description="Standard deviation of gaussian on the scale of the inputs; share of the entries of the others.",
    )
    only_normal: bool = Field(
        default=False,
        description="Learn and calibrate on rows that label does not call anomalies; without it no label is looked at.",
    )
    split_by: tuple[str, ...] = Field(
        default=(),
        description="Without event time: columns whose values keep rows together in one of the parts that a training "
        "is cut into, 7 : 1 : 2; the row's identity when left out. Patches are kept together by their file.",
    )
    warm_start: bool = Field(
        default=True,
        description="Retrain from the weights of the version that serves, where the layers are the same; columns and "
        "categories that it does not know start from drawn weights.",
    )
    anchor: float = Field(
        default=0.1,
        ge=0,
        description="Pull of a retrained model's latents to those of the version that serves: what a squared distance "
        "of one spread weighs, as a share of what that version's training has saved of the loss. 0 lets them go.",
    )
    patience: int = Field(
        default=5, ge=1, description="Epochs without a better validation loss after which training stops."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the weights and of the order of rows.")
    threads: int = Field(
        default=1,
        ge=1,
        description="CPU threads of torch. Small networks run fastest on one: a step is too little work to share.",
    )
    memory_budget: ByteSize | None = Field(
        default=None,
        ge=2**20,
        description="Memory for the rows of a training, such as 4GiB; a quarter of the machine's when left out. Rows "
        "that go beyond it are learnt from in blocks from disk, and what else is fitted sees a sample of them.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="Where to train; auto takes CUDA where there is one. Published scores always come from the CPU.",
    )

    @model_validator(mode="after")
    def _level_is_a_share(self) -> Self:
        if self.corruption in {"masking", "salt_and_pepper"} and self.corruption_level >= 1:
            raise ValueError(
                f"corruption_level={self.corruption_level:g} is no share of the entries, as {self.corruption} needs; "
                "choose one below 1"
            )
        return self


def format_loss(loss: dict[LossTerm, float]) -> str:
    """Writes a loss as it stands in the YAML."""
    return "{" + ", ".join(f"{term.value}: {weight:g}" for term, weight in loss.items()) + "}"
