"""scikit-learn's conventions, without scikit-learn: what its tools ask of an estimator.

`clone`, `cross_val_score`, `GridSearchCV` and pipelines read the constructor's arguments back,
set others, and make copies that know nothing yet.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any, Self

from gptrs.errors import ConfigError


class Estimator:
    """A classifier whose constructor keeps each argument, unchanged, under the argument's name."""

    _estimator_type = "classifier"

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments, as scikit-learn has it."""
        return {name: getattr(self, name) for name in self._parameters()}

    def set_params(self, **params: Any) -> Self:
        """Changes constructor arguments; takes effect in the next `fit`.

        Raises:
            ConfigError: there is no such argument.
        """
        known = self._parameters()
        for name in params:
            if name not in known:
                raise ConfigError(
                    f"a {type(self).__name__} has no {name!r}; it has {', '.join(known)}"
                )
        for name, value in params.items():
            setattr(self, name, value)
        return self

    @classmethod
    def _parameters(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def __sklearn_clone__(self) -> Self:
        # The same arguments, not copies: one of them is a model, which is never changed.
        return type(self)(**self.get_params())

    def __sklearn_tags__(self) -> Any:
        # Asked by scikit-learn 1.6 and later, which is there then.
        utils: Any = import_module("sklearn.utils")
        return utils.Tags(
            estimator_type=self._estimator_type,
            target_tags=utils.TargetTags(required=True),
            classifier_tags=utils.ClassifierTags(),
            input_tags=utils.InputTags(two_d_array=False, string=True),
        )
