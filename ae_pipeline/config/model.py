"""Sections `model` and `training` of `defs.yaml`."""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import ByteSize, Field, field_validator, model_validator

from ae_pipeline.config.section import Section


class Contamination(StrEnum):
    """Whether the training rows contain anomalies; see `TrainingConfig.contamination`."""

    UNKNOWN = "unknown"
    NONE = "none"
    SOME = "some"


class LossTerm(StrEnum):
    """A term of the reconstruction loss. All terms but the likelihood are means over the elements of a row."""

    LIKELIHOOD = "likelihood"
    MSE = "mse"
    MAE = "mae"
    HUBER = "huber"
    BCE = "bce"
    SSIM = "ssim"


class Scaling(StrEnum):
    """The scaling of the inputs of the network."""

    ROBUST = "robust"
    STANDARD = "standard"
    UNIT = "unit"
    SYMMETRIC = "symmetric"


class Output(StrEnum):
    """The activation of the output layer."""

    LINEAR = "linear"
    SIGMOID = "sigmoid"
    TANH = "tanh"


class EventTime(StrEnum):
    """How a model uses the event time of a table."""

    CONTEXT = "context"
    TARGET = "target"
    IGNORE = "ignore"


OUTPUT_OF = {
    Scaling.ROBUST: Output.LINEAR,
    Scaling.STANDARD: Output.LINEAR,
    Scaling.UNIT: Output.SIGMOID,
    Scaling.SYMMETRIC: Output.TANH,
}
"""For each scaling, the output activation with the same range. A linear output fits every scaling."""


class ModelConfig(Section):
    """The network, the scaling of its inputs, and its reconstruction loss."""

    architecture: str = Field(
        default="dense",
        description="Kind of network: `dense` (fully connected, for tables and images) or `conv` (convolutional, for "
        "images).",
    )
    variational: bool = Field(
        default=False,
        description="Train a variational autoencoder (Kingma & Welling 2014). The encoder then outputs a normal "
        "distribution. Training samples from it; the published latents are its mean.",
    )
    latent_dim: int | None = Field(
        default=None,
        ge=1,
        description="Number of latents: columns `z_000`, `z_001`, … of the latent table. By default 8, or half the "
        "number of encoded values that the network reconstructs if that number is below 16.",
    )
    hidden: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        default=None,
        description="Widths of the dense hidden layers of the encoder. The decoder has the same layers in reverse "
        "order. In `conv` they are between the last feature map and the latents. By default [128] for `dense`, and no "
        "such layer for `conv`.",
    )
    tied: bool = Field(
        default=False,
        description="`dense` only: the decoder uses the transposed weights of the encoder. This halves the number of "
        "weights.",
    )
    channels: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(16, 32, 64),
        min_length=1,
        description="`conv` only: channels of each level of the encoder. Each level halves height and width.",
    )
    down: Literal["stride", "pool"] = Field(
        default="stride",
        description="`conv` only: how the encoder halves an image. `stride` is a convolution with stride 2, `pool` a "
        "convolution followed by max pooling.",
    )
    up: Literal["transpose", "upsample"] = Field(
        default="transpose",
        description="`conv` only: how the decoder doubles an image. `transpose` is a transposed convolution, "
        "`upsample` is upsampling followed by a convolution.",
    )
    activation: Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh"] = Field(
        default="relu", description="Activation function between the layers."
    )
    event_time: EventTime = Field(
        default=EventTime.CONTEXT,
        description="How a table's model uses the time of day and the weekday of the event time. `context`: encoder "
        "and decoder read them, but nothing reconstructs them, so they are never a reason for an alert. `target`: "
        "they are a column like all others. `ignore`: the model does not see them. With `context` and `ignore`, "
        "columns that restate a part of the event time, such as a month, are left out unless `columns` or `derive` "
        "declares them.",
    )
    scaling: Scaling | None = Field(
        default=None,
        description="Scaling of the inputs. `robust` (tables only): asinh of the distance from the median, in "
        "standard deviations estimated from the quartiles. `standard`: mean 0, standard deviation 1. `unit`: 0 to 1. "
        "`symmetric`: −1 to 1. By default `robust` for tables and `unit` for images.",
    )
    output: Output | None = Field(
        default=None,
        description="Activation of the output layer. `linear` fits every scaling, `sigmoid` fits `unit`, and `tanh` "
        "fits `symmetric`. By default `linear` if the loss is `likelihood`; otherwise the activation with the range of "
        "the scaling.",
    )
    loss: dict[LossTerm, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        description="Terms of the reconstruction loss and their weights, for example `{mse: 0.8, ssim: 0.2}`. `mse`, "
        "`mae`, `huber`, `bce` (scaling `unit` only) and `ssim` (images only; 1 − SSIM) are means over the elements of "
        "a row. `likelihood` (tables only) uses a suitable distribution for each kind of column, and cannot be "
        "combined. By default `likelihood` for tables and `mse` for images.",
    )
    huber_delta: float = Field(
        default=1.0,
        gt=0,
        description="Error at which the term `huber` changes from quadratic to linear, in units of the scaled inputs.",
    )

    @field_validator("loss")
    @classmethod
    def _likelihood_is_alone(cls, value: dict[LossTerm, float]) -> dict[LossTerm, float]:
        if LossTerm.LIKELIHOOD in value and len(value) > 1:
            raise ValueError(
                f"loss={format_loss(value)}: likelihood cannot be combined with other terms; use it alone, or remove it"
            )
        return value


class TrainingConfig(Section):
    """The training window, and how a model is trained on it."""

    window_days: int = Field(
        default=365,
        ge=3,
        description="Length of the training window in days that have rows: the newest days before the gate's days. "
        "The window is split by time into training, validation and calibration days. Daily datasets only.",
    )
    validation_days: int | None = Field(
        default=None,
        ge=1,
        description="Days of the window after the training days. They decide when early stopping ends a training, and "
        "the tails of the losses are fitted on them. By default 21, or fewer in proportion if there are fewer than 112 "
        "days with rows. Daily datasets only.",
    )
    calibration_days: int | None = Field(
        default=None,
        ge=1,
        description="Newest days of the window. Their scores turn new scores into p-values. The smallest p-value is "
        "1 / (rows of these days + 1). By default 42, or fewer in proportion if there are fewer than 112 days with "
        "rows. Daily datasets only.",
    )
    epochs: int = Field(
        default=12, ge=1, description="Maximum number of passes over the training rows. Early stopping can end sooner."
    )
    batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Rows per batch and optimizer step. Optimizer `gd` first adds up the gradients of all batches. By "
        "default 512, or less with fewer than 8,192 training rows, so that an epoch has about 16 steps.",
    )
    optimizer: Literal["gd", "sgd", "momentum", "nesterov", "adam", "adamw"] = Field(
        default="adamw",
        description="Optimization method. `gd` makes one step per epoch, over all rows. The others make one step per "
        "batch. `sgd`, `momentum` and `nesterov` use one step size for all weights. `adam` and `adamw` adapt the step "
        "size of each weight.",
    )
    learning_rate: float = Field(
        default=6e-3, gt=0, description="Maximum step size. The schedule varies it during the training."
    )
    schedule: Literal["constant", "cosine", "one_cycle"] = Field(
        default="cosine",
        description="Learning rate schedule. `constant` keeps the rate. `cosine` rises over the first 5 % of the steps "
        "and falls to zero along a cosine (Loshchilov & Hutter 2017). `one_cycle` rises for 30 % of the steps and "
        "falls to almost zero (Smith & Topin 2018).",
    )
    momentum: float = Field(
        default=0.9, ge=0, lt=1, description="Momentum of the optimizers `momentum` and `nesterov`."
    )
    weight_decay: float = Field(
        default=1e-4,
        ge=0,
        description="Weight decay. `adamw` decouples it from the gradient. For other optimizers it is an L2 penalty.",
    )
    beta: float = Field(
        default=1.0,
        ge=0,
        description="Weight of the KL divergence of a variational model. With `bce` or `likelihood`, 1 minimizes the "
        "negative ELBO. If the loss is a mean over elements, the KL divergence is divided by their number too. With "
        "`mse`, choose about twice the variance of the noise: about 0.001 for images with scaling `unit`. There, 1 "
        "would collapse the latents.",
    )
    beta_warmup: int = Field(
        default=0,
        ge=0,
        description="Number of epochs in which `beta` rises linearly to its value. This prevents an early collapse of "
        "the latents. It must be below `epochs`.",
    )
    clip_norm: float | None = Field(
        default=None,
        gt=0,
        description="Maximum norm of the gradient over all weights; a larger gradient is scaled down to it. By default "
        "gradients are not clipped.",
    )
    corruption: Literal["none", "gaussian", "masking", "salt_and_pepper"] = Field(
        default="none",
        description="Noise on the inputs during training; the targets stay clean (denoising autoencoder, Vincent et "
        "al. 2008). `gaussian` adds noise, and `masking` sets entries to zero. `salt_and_pepper` sets entries to the "
        "minimum or maximum of the scale, and needs scaling `unit` or `symmetric`.",
    )
    corruption_level: float = Field(
        default=0.1,
        gt=0,
        description="Strength of the corruption. For `gaussian` it is the standard deviation, in units of the scaled "
        "inputs. For `masking` and `salt_and_pepper` it is the share of replaced entries, below 1.",
    )
    augmentation: Literal["none", "mirror", "flips", "turns"] = Field(
        default="none",
        description="Images only: random changes of training images. `mirror` mirrors them left to right, `flips` "
        "also upside down, and `turns` also turns square images by 90°. For images without an upright orientation.",
    )
    only_normal: bool = Field(
        default=False,
        description="Leave rows out of all parts of the training if `label` marks them as known anomalies. It needs "
        "`label`. By default the training ignores labels.",
    )
    contamination: Contamination = Field(
        default=Contamination.UNKNOWN,
        description="Whether the training rows contain anomalies. It matters only for the evidence `ensemble`. `none` "
        "says that people have checked the rows: every row unlike all of them scores high. `some` says that one row "
        "in a hundred or more is an anomaly: the typical training rows count more. `unknown` suits both cases.",
    )
    where: str | None = Field(
        default=None,
        min_length=1,
        description="SQL condition over the columns, such as `split = 'train'`. All parts of the training only have "
        "rows for which it is true; the others are scored as a test set. By default every row can be in the training.",
    )
    split_by: tuple[str, ...] = Field(
        default=(),
        description="Columns that define groups of rows, for datasets without event time. All rows of a group are in "
        "the same part. Of the groups, 70 % are for training, 10 % for validation, 15 % for calibration and 5 % for "
        "the gate, at least one each. By default a hash of its identity assigns each row, 14 : 2 : 3 : 1 in "
        "the same order; with fewer than 1,000 rows, each row is a group. Patches of one image always stay together.",
    )
    warm_start: bool = Field(
        default=True,
        description="Start a retraining from the weights of the champion if the layers have the same sizes. Weights of "
        "new columns and categories start at random values.",
    )
    encoder_weights: str | None = Field(
        default=None,
        description="Safetensors file with weights of an encoder, from which a training without such a champion "
        "starts, for example `weights.safetensors` of another bundle. Dense layers that do not fit start at random.",
    )
    anchor: float = Field(
        default=0.1,
        ge=0,
        description="Strength of the penalty that keeps the latents of a retrained model near those of the champion. "
        "A squared distance of one standard deviation costs this share of the loss that the champion's training has "
        "saved. 0 switches the penalty off.",
    )
    patience: int = Field(
        default=5,
        ge=1,
        description="Epochs without a lower validation loss after which early stopping ends the training. The weights "
        "of the best epoch are kept.",
    )
    seed: int = Field(
        default=0, ge=0, description="Random seed of the initial weights, the order of the rows and the noise."
    )
    threads: int = Field(
        default=1,
        ge=1,
        description="CPU threads of torch in a training. Small networks are fastest with 1.",
    )
    workers: int = Field(
        default=1,
        ge=1,
        description="Processes that train one network in Ray Train, each on its part of every batch, on its own GPU or "
        "`threads` cores. More than 1 needs `AE_PIPELINE_ENGINE=ray`, and rows within `memory_budget`. The network is "
        "the same as with 1, up to rounding. This pays off for wide convolutional networks.",
    )
    memory_budget: ByteSize | None = Field(
        default=None,
        ge=2**20,
        description="Maximum memory for the rows of a training, for example `4GiB`. If a window needs more, the "
        "training reads blocks of rows from disk. Statistics are then fitted on a sample. By default 4 GiB, or a "
        "quarter of the memory of a machine or container that has less than 16 GiB.",
    )
    max_screened_share: float = Field(
        default=0.25,
        ge=0,
        lt=1,
        description="Maximum share of the validation rows, and of the calibration rows, that are left out because the "
        "champion flags them far beyond its alert budget or finds their days unlike its window. Without a champion, "
        "calibration days with far too many of the highest scores are left out, and a few rows of the other days that "
        "score higher than validation rows. If a hash divides the rows, outlying scores of at most 200 calibration "
        "rows or images are left out. If more than this share would go, or if the scores have shifted as a whole, the "
        "data has changed, and nothing is left out. 0 switches the screening off.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="Device for training, scores, explanations, the gate and the registered model. `auto` uses CUDA "
        "if it is available. A model that was trained on CUDA scores on the CPU of machines without it; the scores "
        "are the same to nine digits.",
    )

    @model_validator(mode="after")
    def _level_is_a_share(self) -> Self:
        if self.corruption in {"masking", "salt_and_pepper"} and self.corruption_level >= 1:
            raise ValueError(
                f"corruption_level={self.corruption_level:g} must be a share of the entries, because corruption is "
                f"{self.corruption}; choose a value below 1"
            )
        return self


def format_loss(loss: dict[LossTerm, float]) -> str:
    """Return a loss in the notation of the YAML.

    >>> format_loss({LossTerm.MSE: 0.8, LossTerm.SSIM: 0.2})
    '{mse: 0.8, ssim: 0.2}'
    """
    return "{" + ", ".join(f"{term.value}: {weight:g}" for term, weight in loss.items()) + "}"
