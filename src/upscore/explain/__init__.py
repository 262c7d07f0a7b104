"""What a layer does, in numbers and words: plain data first, its rendering apart.

One module per concept, each with a frozen dataclass of its findings: `sizes`, `overlap`, `phases`, `kernel`,
`coordinates`, `checkerboard`, `engine` and, for small cases, `definitions`. `explain` collects them into an
`Explanation`, whose `to_json` gives them to programs, and `render` shows them to people (it alone imports rich).

>>> from upscore import Geometry
>>> found = explain(Geometry((64, 64), 32), (16, 16))
>>> found.sizes[0].filled_in
'(16 - 1)*32 + 1*(64 - 1) + 1 - 0 - 0 = 544'
>>> found.kernel[0].touched, found.kernel[0].is_bilinear
(32, False)
"""

from upscore.explain.explanation import Explanation, explain

__all__ = ["Explanation", "explain"]
