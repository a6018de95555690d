"""Which settings of Hyena's filter and operator are best at which length."""
