"""`Block`: what the mixins for residual and attention blocks have in common."""

from typing import TYPE_CHECKING, Any

from torch import nn

from fastgen.dropin.swap import Swapped, patched


class Block(Swapped, nn.Module):
    """A mixin that replaces a block's forward. Input it is not made for goes to the former forward."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...  # what the former class has

    fuses: str  # for the report

    @classmethod
    def obstacle(cls, module: Any) -> str | None:
        """Why a module is left as it is; None where it is not."""
        raise NotImplementedError

    def fits(self) -> bool:
        """Whether nothing that the mixin computes in place of calling it was changed since."""
        return not patched(self) and self.obstacle(self) is None

    @classmethod
    def learn(cls, module: Any) -> None:
        """Learns the classes of other objects that `obstacle` asks for: before it is first asked, and in each process anew."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.learn(self)
