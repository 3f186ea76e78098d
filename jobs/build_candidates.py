"""spark-submit --properties-file FILE jobs/build_candidates.py --conf conf/cluster.yaml --run-id ID"""

import sys

from ecomspark.launch import main
from ecomspark.pipelines import build_candidates

if __name__ == "__main__":
    sys.exit(main(build_candidates))
