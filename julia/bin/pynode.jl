# julia --project=. -t auto julia/bin/pynode.jl solve|gradient|train|ensemble FOLDER [OPTIONS]
using PyNode

exit(PyNode.Run.main(ARGS))
