"""spark-submit --properties-file FILE jobs/build_sessions.py --conf conf/cluster.yaml --run-id ID"""

import sys

from ecomspark.launch import main
from ecomspark.pipelines import build_sessions

if __name__ == "__main__":
    sys.exit(main(build_sessions))
