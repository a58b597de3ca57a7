"""Euler's method: order 1, one stage, no error estimate.

Source: Hairer, Norsett, Wanner, *Solving Ordinary Differential Equations I*, section I.7. The
interpolant is the straight line through the two ends of the step.
"""

from pynode.engines.torch.tableau import Tableau

TABLEAU = Tableau(
    name="euler",
    order=1,
    a=((),),
    b=(1.0,),
    c=(0.0,),
    interpolant=((1.0,),),
    interpolant_order=1,
    reference="Hairer, Norsett, Wanner, Solving ODEs I, section I.7",
)
