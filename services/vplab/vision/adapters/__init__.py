"""Ways to teach SAM's mask decoder with few parameters: E-PEFT, its four parts, and what it is compared with.

``spec`` describes an adapter and imports no torch; ``adapt`` puts one beside a decoder. One module a method.
"""
